"""How a run is watched while it learns: evaluations, early stopping, samples, loggers. Cold, like schema.py."""

from __future__ import annotations

from typing import Literal, LiteralString

from core.schema import Spec, knob
from core.sections import Data
from core.stages import Stage

Logger = Literal["tensorboard", "wandb", "mlflow", "trackio", "swanlab"]


class Watching(Spec):
    """What is measured on the way, and what follows from it."""

    at_start: bool = knob(False, expert=True)
    """Evaluate at the start
    Evaluate once before the first step, too: it shows how much was learned. It counts for nothing else."""
    patience: int = knob(0, ge=0, le=1000)
    """Early stopping
    End the run after so many evaluations in a row without a lower loss on the evaluation set (of several sets, the
    first). 0 turns it off. Typical: 2 to 5."""
    threshold: float = knob(0.0, ge=0, le=100, expert=True)
    """Least improvement
    How much lower a loss must be to count as lower for early stopping. Typical: 0 to 0.01."""
    best: bool = knob(False)
    """Save the best
    Save the model of the evaluation with the lowest loss instead of the last one. Its checkpoint is kept beside the
    others."""
    samples: int = knob(0, ge=0, le=32)
    """Samples
    How many held-out questions the model answers at each evaluation, for you to read. Of stages that draw answers
    themselves, as many of these are shown as often. 0 turns it off."""
    sample_tokens: int = knob(64, ge=1, le=4096, expert=True)
    """Longest sample
    Tokens of a sampled answer. Long ones take time at each evaluation."""
    report_to: list[Logger] = knob([], max_length=5, expert=True)
    """Report to
    Trackers that get the curves as well: tensorboard, wandb, mlflow, trackio, swanlab. They write into the folder of
    the run; where they send it, and with which key, is told by their own environment variables."""

    def against(self, data: Data, stage: Stage) -> tuple[LiteralString, str] | None:
        """Return (code, place) of the first wish that nothing can be measured for; None where there is none."""
        if self.samples and not stage.answers:
            return "watching.no_answers", "watching.samples"
        if not stage.draws and (data.eval or (data.eval_share and not data.streaming)):
            return None
        wishes = {
            "watching.at_start": self.at_start, "watching.patience": self.patience, "watching.best": self.best,
            "watching.samples": self.samples and not stage.draws,
        }  # fmt: skip
        code: LiteralString = "watching.drawn" if stage.draws else "watching.no_rows"
        return next(((code, place) for place, wish in wishes.items() if wish), None)
