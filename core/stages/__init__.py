"""What a run teaches and how: one file, one stage, read top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.schema import Spec

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Stage(Spec):
    """A stage of training; `kind` names it."""

    kind: str

    def train(self, run: Run, context: Context) -> dict[str, float]:
        """Train as `run` says, write into the run folder, return the final metrics.

        Resumes from the newest good checkpoint in the run folder when there is one.
        """
        raise NotImplementedError
