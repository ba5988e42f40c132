"""What an optimizer asks of the other settings of a run, and what is said where they don't give it. Cold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString

from core.optimizers import Want
from core.schema import crossed

if TYPE_CHECKING:
    from core.run import Run


@dataclass(frozen=True)
class Crossing:
    """A wish of an optimizer."""

    code: LiteralString
    place: str
    """The setting that stands against it."""
    given: Callable[[Run], bool]
    """Whether a run grants it."""


def _inside(run: Run) -> bool:
    """Return whether all that must learn lies in the blocks of the model: no rows for tokens, no value head."""
    return not run.model.added and run.stage.kind not in ("rm", "ppo")


CROSSINGS: Mapping[Want, Crossing] = {
    "own_weights": Crossing("optimizer.adapters", "tuner", lambda run: run.tuner.own_weights),
    "matrices": Crossing("optimizer.turns", "tuner", lambda run: run.tuner.kind != "oft"),
    "outside": Crossing("optimizer.outside", "optimizer.badam.ends", _inside),
    "alone": Crossing("optimizer.processes", "launcher", lambda run: run.launcher.alone),
    "no_clip": Crossing("optimizer.clip", "training.clip", lambda run: not run.training.clip),
    "one_batch": Crossing("optimizer.accumulation", "training.accumulation", lambda run: run.training.accumulation < 2),
    "no_fp16": Crossing("optimizer.fp16", "model.precision", lambda run: run.model.precision != "fp16"),
    "constant": Crossing("optimizer.schedule", "training.schedule", lambda run: run.training.schedule == "constant"),
}
"""In the order in which they are told."""


def check(run: Run) -> None:
    """Raise the error of the first wish of the optimizer of a run that is not granted."""
    for want, crossing in CROSSINGS.items():
        if want in run.optimizer.wants and not crossing.given(run):
            raise crossed(crossing.code, crossing.place, optimizer=run.optimizer.kind, tuner=run.tuner.kind)
