"""Odds ratio preference optimization (Hong et al., arXiv 2403.07691)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from core.schema import knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Orpo(Stage):
    """ORPO
    Learn the better answers by example and raise their odds over the worse ones, in one go and without a reference:
    for a model that was not taught to answer yet."""

    kind: Literal["orpo"] = "orpo"
    wanted: ClassVar = ("ranking",)
    measure: ClassVar = "eval rewards/accuracies"
    likelier: ClassVar = ("beta",)
    beta: float = knob(0.1, gt=0, le=100)
    """Beta
    Weight of the odds beside the imitation of the better answers. Typical: 0.05 to 0.5."""

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.preference import OddsRatio

        return course.train(run, context, OddsRatio(self.beta))
