"""Full tuning: every weight learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from core.models.shapes import Shapes
from core.tuners import Rows, Tuner, learn, save_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Full(Tuner):
    """Full
    Every weight learns. Strongest and heaviest: about 16 bytes of memory a parameter."""

    kind: Literal["full"] = "full"
    own_weights: ClassVar[bool] = True

    def learns(self, shapes: Shapes, tokens: int = 0) -> dict[str, tuple[int, ...]]:
        return dict(shapes.tensors)

    def attach(
        self, model: PreTrainedModel, folder: Path, tokens: Sequence[int] = (), rows: Rows = ()
    ) -> PreTrainedModel:
        learn(model, {name for name, _ in model.named_parameters()})
        return model

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        return save_whole(model, tokenizer, folder)
