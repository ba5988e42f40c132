"""Simple preference optimization (Meng et al., arXiv 2405.14734)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from core.schema import knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Simpo(Stage):
    """SimPO
    Learn from comparisons without a reference, by the mean over the tokens of an answer: favours no long answers, and
    takes less time and memory than DPO."""

    kind: Literal["simpo"] = "simpo"
    wanted: ClassVar = ("ranking",)
    measure: ClassVar = "eval rewards/accuracies"
    likelier: ClassVar = ("sft_weight",)
    beta: float = knob(2.0, gt=0, le=100)
    """Beta
    Steepness of the loss. Typical: 2 to 2.5, up to 10 for models that were taught to answer."""
    gamma: float = knob(1.0, ge=0, le=100)
    """Gamma
    Margin by which the better answer shall win. Typical: 0.3 to 1.6; half of beta is a start."""
    sft_weight: float = knob(0.0, ge=0, le=100, expert=True)
    """Weight of imitation
    Learn the better answers by example, too: keeps them from becoming less likely. Typical: 0 to 1."""

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.preference import WithoutReference

        objective = WithoutReference(self.beta, self.gamma, self.sft_weight, mean=True)
        return course.train(run, context, objective)
