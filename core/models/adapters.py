"""Attach trained adapters to a model, checked by name, shape and value before use."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from core.errors import InputError
from core.models.inspect import inspect_adapter
from core.models.loading import shorten


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
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    try:
        wrapped = _make_places(model, config, name)
    except ValueError:  # "Target modules ... not found in the base model"
        raise InputError("adapter.no_match", place, folder=str(folder), base=facts.base) from None
    weights = _without_base_layers(wrapped, weights)
    _check_fit(wrapped, weights, folder, name, facts.base, place)
    set_peft_model_state_dict(wrapped, weights, adapter_name=name)
    return wrapped.eval()


def _make_places(model: PreTrainedModel | PeftModel, config: PeftConfig, name: str) -> PeftModel:
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    return PeftModel(model, config, adapter_name=name)


def _without_base_layers(model: PeftModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the copies of unchanged base layers that PEFT writes beside an adapter of the embeddings."""
    own = model.state_dict()
    return {
        key: tensor
        for key, tensor in weights.items()
        if not (key.endswith("base_layer.weight") and key in own and own[key].shape == tensor.shape)
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
