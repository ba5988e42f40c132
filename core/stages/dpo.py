"""Direct preference optimization and its kin (Rafailov et al., arXiv 2305.18290)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from core.schema import crossed, knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Dpo(Stage):
    """DPO
    Learn from comparisons to prefer the better of two answers, without drifting far from the model as it was."""

    kind: Literal["dpo"] = "dpo"
    wanted: ClassVar = ("ranking",)
    measure: ClassVar = "eval rewards/accuracies"
    likelier: ClassVar = ("beta", "sft_weight")
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "bco_pair"] = knob("sigmoid")
    """Loss
    Sigmoid is DPO itself; hinge stops at a margin; IPO resists learning few pairs by heart; robust expects some pairs
    to be the wrong way round; bco_pair judges each answer by itself."""
    beta: float = knob(0.1, gt=0, le=100)
    """Beta
    How strongly the model is held to what it was. Lower it to let it move more. Typical: 0.05 to 0.5."""
    label_smoothing: float = knob(0.0, ge=0, lt=0.5, expert=True)
    """Label smoothing
    Share of the pairs that may be the wrong way round: for sigmoid (conservative DPO) and robust. Typical: 0 to 0.2."""
    sft_weight: float = knob(0.0, ge=0, le=100, expert=True)
    """Weight of imitation
    Learn the better answers by example, too: keeps them from becoming less likely. Typical: 0 to 1."""
    tail_weight: float = knob(1.0, ge=0, le=1, expert=True)
    """Weight of the longer end
    What the longer answer of a pair counts beyond the length of the other (LD-DPO). Lower it when answers grow longer
    and longer. 1 turns it off."""
    precompute: bool = knob(False, expert=True)
    """Ask the reference first
    Compute what the model says of all answers before it learns, once: faster with several epochs. Always done where
    the model as it was can't be had beside the one that learns: full tuning, PiSSA, a start from an adapter."""

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> Dpo:
        if self.loss == "robust" and not self.label_smoothing:
            raise crossed("dpo.robust", "stage.dpo.label_smoothing")
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise crossed("dpo.smoothing", "stage.dpo.label_smoothing", loss=self.loss)
        return self

    def asks(self, *, keeps_base: bool) -> bool:
        return self.precompute or not keeps_base

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.preference import AgainstReference
        from core.training.running import Running

        objective = AgainstReference(
            self.loss, self.beta, self.label_smoothing, self.sft_weight, self.tail_weight,
            running=Running() if self.loss == "bco_pair" else None, asks=self.asks(keeps_base=run.tuner.keeps_base()),
        )  # fmt: skip
        return course.train(run, context, objective)
