"""Full tuning: every weight learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.tuners import Tuner, learn, save_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Full(Tuner):
    """Full
    Every weight learns. Strongest and heaviest: about 16 bytes of memory a parameter."""

    kind: Literal["full"] = "full"

    def attach(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        learn(model, {name for name, _ in model.named_parameters()})
        return model

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        return save_whole(model, tokenizer, folder)
