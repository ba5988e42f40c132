"""Kahneman-Tversky optimization (Ethayarajh et al., arXiv 2402.01306)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from core.schema import crossed, knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Kto(Stage):
    """KTO
    Learn from answers that were liked or not, each by itself: thumbs up and down are enough, no pairs are needed."""

    kind: Literal["kto"] = "kto"
    wanted: ClassVar = ("feedback",)
    measure: ClassVar = "eval rewards/accuracies"
    likelier: ClassVar = ("beta",)
    beta: float = knob(0.1, gt=0, le=100)
    """Beta
    How strongly the model is held to what it was. Lower it to let it move more. Typical: 0.05 to 0.5."""
    liked_weight: float = knob(1.0, ge=0, le=100)
    """Weight of liked answers
    Raise it where few answers were liked: weight times number should be much the same for both kinds."""
    disliked_weight: float = knob(1.0, ge=0, le=100)
    """Weight of disliked answers
    Raise it where few answers were disliked. Typical: 1."""
    precompute: bool = knob(False, expert=True)
    """Ask the reference first
    Compute what the model says of all answers before it learns, once: faster with several epochs. Always done where
    the model as it was can't be had beside the one that learns: full tuning, PiSSA, a start from an adapter."""

    @model_validator(mode="after")
    def _something_counts(self) -> Kto:
        if not (self.liked_weight or self.disliked_weight):
            raise crossed("kto.weights", "stage.kto.liked_weight")
        return self

    @property
    def rests(self) -> bool:
        return not (self.liked_weight and self.disliked_weight)

    def asks(self, *, keeps_base: bool) -> bool:
        return self.precompute or not keeps_base

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.preference import LikedOrNot

        asks = self.asks(keeps_base=run.tuner.keeps_base())
        objective = LikedOrNot(self.beta, self.liked_weight, self.disliked_weight, asks, context.team)
        return course.train(run, context, objective)
