"""Which weights learn: one file, one tuner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, LiteralString

from core.errors import InputError
from core.schema import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Tuner(Spec):
    """A way to choose or add the weights that learn; `kind` names it."""

    kind: str

    def needs_whole(self) -> tuple[LiteralString, str] | None:
        """Return (code, place) of what stands against quantized weights; None where nothing does."""
        return "quantizer.full", "tuner"

    def attach(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Return the model with only the weights of this tuner trainable, those in fp32.

        folder: the run folder. What a resumed run needs to attach in the very same way is kept there.
        """
        raise NotImplementedError

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        """Save what was learned into the run folder, `adapter` or `model`, whole or not at all; return where."""
        raise NotImplementedError


def learn(model: PreTrainedModel, names: set[str]) -> None:
    """Let exactly the named parameters learn, in fp32: in fewer bits small steps would be rounded away.

    Raises InputError for a model whose weights are quantized.
    """
    if quantized(model):
        raise InputError("packed.full", "tuner", given=str(model.config.quantization_config.quant_method))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def quantized(model: PreTrainedModel) -> bool:
    """Return whether weights of the model are held in few bits, so that they can neither learn nor be taken apart."""
    return bool(getattr(model, "is_quantized", False))  # transformers sets it on those alone


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save a whole model with its tokenizer as `model`; what learned stays in fp32, so that nothing is rounded away."""
    from core.files import aside

    with aside(folder / "model") as place:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return folder / "model"
