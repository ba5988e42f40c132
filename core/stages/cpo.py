"""Contrastive preference optimization (Xu et al., arXiv 2401.08417)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from core.schema import knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Cpo(Stage):
    """CPO
    Learn from comparisons without a reference, held by imitation of the better answers. Made for translation."""

    kind: Literal["cpo"] = "cpo"
    wanted: ClassVar = ("ranking",)
    measure: ClassVar = "eval rewards/accuracies"
    likelier: ClassVar = ("sft_weight",)
    beta: float = knob(0.1, gt=0, le=100)
    """Beta
    Steepness of the loss. Typical: 0.05 to 0.5."""
    label_smoothing: float = knob(0.0, ge=0, lt=0.5, expert=True)
    """Label smoothing
    Share of the pairs that may be the wrong way round. Typical: 0 to 0.2."""
    sft_weight: float = knob(1.0, ge=0, le=100)
    """Weight of imitation
    How much the better answers are learned by example, too. Typical: 1."""

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.preference import WithoutReference

        objective = WithoutReference(self.beta, imitate=self.sft_weight, smoothing=self.label_smoothing)
        return course.train(run, context, objective)
