"""Reward model: a number for an answer, learned from comparisons (Ouyang et al., arXiv 2203.02155, eq. 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from core.schema import knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Rm(Stage):
    """Reward model
    Learn from comparisons to give the better answer the higher number: the judge that PPO learns from. The value head
    that gives the number goes on from that of the adapter to start from, or of the model, where one lies there."""

    kind: Literal["rm"] = "rm"
    wanted: ClassVar = ("ranking",)
    measure: ClassVar = "eval rewards/accuracies"
    answers: ClassVar = False
    heads: ClassVar = True
    centering: float = knob(0.0, ge=0, le=10, expert=True)
    """Centering
    Pull of the two numbers of a pair towards opposite signs, so that rewards stay near zero. Typical: 0 to 0.01."""

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.reward import Reward

        return course.train(run, context, Reward(self.centering), values=True)
