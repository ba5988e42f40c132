"""Pretraining: go on reading plain texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Pt(Stage):
    """Pretraining
    Go on reading plain texts, every token of them: for a new field or language, before answers are taught."""

    kind: Literal["pt"] = "pt"
    wanted: ClassVar = ("text",)

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.objective import NextToken

        return course.train(run, context, NextToken())
