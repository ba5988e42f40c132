"""Attach trained adapters to a model, checked by name, shape and value before use."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.oft.layer import OFTRotationModule
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import InputError
from core.models import loftq
from core.models.copies import share_all
from core.models.inspect import TOKENIZERS, inspect_adapter
from core.models.jsons import read_json
from core.models.loading import read_tokenizer, shorten
from core.models.vocabulary import embedding_rows, grow


def tokenizer_of(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str = "tuned"
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that an adapter was trained with, that of its base where none lies beside it.

    The model gets rows for tokens that it does not know: before any adapter is attached. Raises InputError at `place`.
    """
    inspect_adapter(folder, place)
    if not any((folder / name).exists() for name in TOKENIZERS):
        return tokenizer
    own = read_tokenizer(folder, model.config, place)
    own.chat_template = own.chat_template or tokenizer.chat_template
    own.pad_token, own.eos_token = own.pad_token or tokenizer.pad_token, own.eos_token or tokenizer.eos_token
    if len(own) > embedding_rows(model):
        grow(model, len(tokenizer), len(own), place)
    return own


def has_tokens(folder: Path) -> bool:
    """Return whether an inspected adapter brings rows of its own for some tokens."""
    return bool(read_json(folder / "adapter_config.json", "tuned", "adapter.no_config").get("trainable_token_indices"))


UNUSABLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    ImportError,
    AssertionError,
)
"""What peft raises for settings that it can't make sense of."""
BASE = ("base_layer.weight", "base_layer.bias")


def load_adapter(model: PreTrainedModel | PeftModel, folder: Path, name: str, place: str = "tuned") -> PeftModel:
    """Return the model with the adapter of a folder attached under `name`, in eval mode and not trainable.

    name: no dots (it becomes part of the parameter names). Raises InputError at `place` when the adapter does not fit;
    the model must then not be used any more, for places of the adapter may be left in it.
    """
    facts = inspect_adapter(folder, place)
    weights = load_file(folder / "adapter_model.safetensors")
    broken = [key for key, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError("adapter.not_finite", place, folder=str(folder), names=shorten(broken))
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except UNUSABLE as error:
        raise InputError("adapter.unusable", place, folder=str(folder), what=str(error)[:200]) from None
    if loftq.over_its_base(model, folder, place):
        config, weights = loftq.half(config, weights)
    config.inference_mode = True
    _check_tokens(config, embedding_rows(model), folder, place)
    try:
        wrapped = _make_places(model, config, name)
    except ValueError:  # "Target modules ... not found in the base model"
        raise InputError("adapter.no_match", place, folder=str(folder), base=facts.base) from None
    except UNUSABLE as error:
        raise InputError("adapter.unusable", place, folder=str(folder), what=str(error)[:200]) from None
    weights = _without_base_layers(wrapped, weights)
    _check_fit(wrapped, weights, folder, name, facts.base, place)
    set_peft_model_state_dict(wrapped, weights, adapter_name=name)
    _check_loaded(wrapped, weights, folder, name, facts.base, place)
    return wrapped.eval()


def _make_places(model: PreTrainedModel | PeftModel, config: PeftConfig, name: str) -> PeftModel:
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return share_all(turn_anything(model))
    return share_all(turn_anything(PeftModel(model, config, adapter_name=name)))


def turn_anything(model: PeftModel) -> PeftModel:
    """Let OFT turn inputs of four dimensions: peft (0.21) takes those of any layer for images. Return the model."""
    for module in model.modules():
        if isinstance(module, OFTRotationModule) and module.kernel_size == (0, 0):  # of no convolution
            vars(module).update(_unfold=_as_it_is, _fold=_as_it_is)
    return model


def _as_it_is(given: torch.Tensor, shape: tuple[int, ...] = ()) -> torch.Tensor:
    return given


def _check_tokens(config: PeftConfig, rows: int, folder: Path, place: str) -> None:
    """Refuse rows of tokens that the model has no place for."""
    given = config.to_dict().get("trainable_token_indices") or []
    ids = [index for part in given.values() for index in part] if isinstance(given, dict) else given
    if odd := [index for index in ids if not isinstance(index, int) or not 0 <= index < rows]:
        raise InputError("adapter.tokens", place, folder=str(folder), given=str(odd[0]), rows=rows)


def _without_base_layers(model: PeftModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the copies of unchanged base layers that PEFT writes beside an adapter of the embeddings or the head."""
    own = model.state_dict()
    return {
        key: tensor
        for key, tensor in weights.items()
        if not (key.endswith(BASE) and key in own and own[key].shape == tensor.shape)
    }


def _check_fit(
    model: PeftModel, weights: dict[str, torch.Tensor], folder: Path, name: str, base: str, place: str
) -> None:
    """Refuse weights whose names or shapes are not exactly those that the model has places for."""
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    common = own.keys() & weights.keys()
    if not common:
        raise InputError("adapter.no_match", place, folder=str(folder), base=base)
    shapes = [f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
              for key in common if weights[key].shape != own[key].shape]  # fmt: skip
    if shapes:
        raise InputError("adapter.shapes", place, folder=str(folder), base=base, names=shorten(shapes))
    if odd := own.keys() ^ weights.keys():
        raise InputError("adapter.partial", place, folder=str(folder), base=base, names=shorten(odd))


def _check_loaded(
    model: PeftModel, weights: dict[str, torch.Tensor], folder: Path, name: str, base: str, place: str
) -> None:
    """Refuse weights that did not get into the model: peft renames some, and says nothing of those without a place."""
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    lost = [key for key, tensor in weights.items() if not torch.equal(own[key].cpu(), tensor.to(own[key].dtype))]
    if lost:
        raise InputError("adapter.partial", place, folder=str(folder), base=base, names=shorten(lost))
