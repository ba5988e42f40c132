"""How weights move: one file, one optimizer."""

from __future__ import annotations

from typing import Any

from core.schema import Spec


class Optimizer(Spec):
    """An optimizer and its settings; `kind` names it."""

    kind: str

    def arguments(self) -> dict[str, Any]:
        """Return the fields of transformers' TrainingArguments that choose and set this optimizer."""
        raise NotImplementedError
