"""What bitsandbytes needs, of a model whose weights it holds in few bits, to compute and to teach right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from core.models import packed_check
from core.models.packed import READ_PAST, packs_little

PACKED = ("Linear4bit", "Linear8bitLt")
"""Classes of packed layers."""


def whole(model_type: str) -> list[str] | None:
    """Return the layers of a type of model that are never packed; None where the libraries know them all."""
    return ["lm_head", *READ_PAST[model_type]] if model_type in READ_PAST else None


def handed_on(whole: PreTrainedConfig, part: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a part of a model, with what that of the whole says of how the weights are packed."""
    if told := vars(whole).get("quantization_config"):
        part.quantization_config = told
    return part


def check(made: PreTrainedModel, quantization: Any) -> None:
    """Refuse a model of whose linear layers most weights would stay as they are: bitsandbytes takes plain ones alone.

    made: the model without weights; its layers are exchanged here as they will be when it is loaded.
    """
    _exchange(made, quantization, packed=False)
    head, packed, plain = made.get_output_embeddings(), 0, 0
    for module in made.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:  # those packed are kinds of it
            size = module.in_features * module.out_features
            packed, plain = (packed + size, plain) if type(module).__name__ in PACKED else (packed, plain + size)
    if packed < plain:
        raise packs_little(made.config.model_type)


def unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model; one that came packed by bitsandbytes with the weights that it computes with."""
    if getattr(model, "quantization_method", "") != "bitsandbytes":
        return model
    given: Any = model
    reading = {tuple(one.source_patterns) for one in given.hf_quantizer.get_weight_conversions()}
    own = [one for one in given._weight_conversions or () if tuple(one.source_patterns) not in reading]
    given = model.dequantize(torch.float32)
    given._weight_conversions = own  # else it would be written as it was read
    return given


def check_packed(made: PreTrainedModel, folder: Path) -> None:
    """Refuse a model in whose files what is packed lacks something, or is damaged.

    made: the model without weights; its layers are exchanged here as they will be when it is loaded.
    """
    _exchange(made, made.config.quantization_config, packed=True)
    layers = packed(made)
    packed_check.check(folder, {name: (layer.out_features, layer.in_features) for name, layer in layers.items()},
                       eight=in_eight(layers))  # fmt: skip


def packed(model: PreTrainedModel) -> dict[str, Any]:
    """Return the packed layers of a model by name."""
    return {name: module for name, module in model.named_modules() if type(module).__name__ in PACKED}


def in_eight(layers: Mapping[str, Any]) -> bool:
    """Return whether packed layers are in 8 bits."""
    return any(type(layer).__name__ == "Linear8bitLt" for layer in layers.values())


def _exchange(made: PreTrainedModel, quantization: Any, *, packed: bool) -> None:
    """Put packed layers in the place of plain ones. packed: whether the files hold them packed."""
    AutoHfQuantizer.from_config(quantization, pre_quantized=packed).preprocess_model(made, device_map=None)


def make_ready(model: PreTrainedModel, *, made: bool = False) -> None:
    """Mend the packed layers of a model. made: whether its files hold them unpacked.

    Linear4bit: on a CPU with AVX-512 BF16 an answer without gradients repacks the weights for good; what is trained
    above them gets no gradient any more, and widths that 32 does not divide fail (bitsandbytes 0.50.2,
    Linear4bit.forward). Linear8bitLt: takes no more than three dimensions, where latent attention gives four.
    """
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")  # each of them, each time
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        elif kind == "Linear8bitLt":
            module.forward = partial(_in_lines, module.forward)
    if made:
        _let_go(model)


def _let_go(model: PreTrainedModel) -> None:
    """Copy what a packed model holds unpacked: else its files stay mapped, with all their pages."""
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        module, _, part = name.rpartition(".")
        if part != "weight" or type(model.get_submodule(module)).__name__ not in PACKED:
            weight.data = weight.data.clone()


def _in_lines(forward: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
    """Return what a layer gives for an input of any shape (..., D)."""
    if given.ndim <= 3:
        return forward(given)
    return forward(given.flatten(0, -2)).unflatten(0, given.shape[:-1])
