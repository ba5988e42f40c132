"""LoftQ (Li et al., arXiv 2310.08659), one step of it: an adapter begins with what 4 bits have lost of the weights.

The base is quantized as it is loaded, Q; A and B begin as the best product of their rank for W - Q, so that the model
begins nearer to itself: Q + s·B·A ≈ W. peft's own way needs a GPU, and files in which weights are named as in memory.

What is learned stands above Q. It is saved for W, where that beginning would be too much: s·B·A - s·B0·A0, one product
of twice the rank, whose second half is left out again above the very same Q (half).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from core.errors import InputError
from core.files import aside
from core.models import pissa
from core.models.headers import weight_files
from core.models.jsons import read_json

FILE = "loftq.json"
"""Beside an adapter: the quantization of the base that it was trained above."""
BITS = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
"""Settings of bitsandbytes that decide what is lost."""
PLACE = "tuner.lora.loftq"


@torch.no_grad()
def begin(model: Any, beginning: Path, adapter: str) -> None:
    """Set A and B of each layer in 4 bits so that s·B·A is nearly the best product for what the weight has lost.

    They are kept in `beginning`, for as_plain() and for a resumed run. Raises InputError for a model in other bits, and
    where its files don't have a weight as it was before.
    """
    layers = {name.removeprefix("base_model.model."): layer for name, layer in model.named_modules()
              if isinstance(layer, LoraLayer) and type(layer.get_base_layer()).__name__ == "Linear4bit"}  # fmt: skip
    if not layers:
        raise InputError("quantizer.loftq", PLACE)
    if beginning.is_dir():
        set_peft_model_state_dict(model, load_file(beginning / pissa.WEIGHTS), adapter)
        return
    for name, weight_O_I in _weights(model, list(layers)):
        _make_up(layers[name], weight_O_I, adapter)
    with aside(beginning) as place:
        model.save_pretrained(place)


def as_plain(adapter: Path, beginning: Path, model: Any) -> None:
    """Rewrite an adapter to fit the whole base, and write beside it above which other it is half of that."""
    pissa.as_plain(adapter, beginning)
    (adapter / FILE).write_text(json.dumps(_bits(model)) + "\n", encoding="utf-8")


def keep_beginning(adapter: Path, beginning: Path) -> None:
    """Write what the second half of an adapter takes back, for as_plain() after it was trained on."""
    weights = load_file(adapter / pissa.WEIGHTS)
    half = {name: -tensor[:, tensor.shape[1] // 2 :] if "lora_B" in name else tensor[len(tensor) // 2 :]
            for name, tensor in weights.items() if "lora_A" in name or "lora_B" in name}  # fmt: skip
    with aside(beginning) as place:
        save_file({name: tensor.contiguous() for name, tensor in half.items()}, place / pissa.WEIGHTS)


def over_its_base(model: Any, folder: Path, place: str) -> bool:
    """Return whether the model is in the very bits above which the adapter of a folder learned to make up for them."""
    return (folder / FILE).is_file() and read_json(folder / FILE, place, "adapter.no_config") == _bits(model)


def half(config: Any, weights: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return settings and weights of an adapter without the half that takes its beginning back."""
    config, weights = copy.copy(config), dict(weights)
    config.r, config.lora_alpha = config.r // 2, config.lora_alpha / (2**0.5 if config.use_rslora else 2)  # s stays
    for name, tensor in weights.items():
        if "lora_A" in name:
            weights[name] = tensor[: len(tensor) // 2]
        elif "lora_B" in name:
            weights[name] = tensor[:, : tensor.shape[1] // 2]
    return config, weights


def _make_up(layer: Any, weight_O_I: torch.Tensor, adapter: str) -> None:
    """Set A and B of a layer, and where they turn about a length (DoRA), that length."""
    base = layer.get_base_layer()
    if issubclass(base.source_cls, Conv1D):  # which lies crosswise in the file
        weight_O_I = weight_O_I.T
    lost_O_I = weight_O_I.to(base.weight.device).float() - dequantize_module_weight(base).float()
    rank = min(layer.r[adapter], *lost_O_I.shape)
    # twice the wanted directions are followed (Halko et al., arXiv 0909.4061): within 0.3 % of the best product
    U_O_R, S_R, V_I_R = torch.svd_lowrank(lost_O_I, q=min(2 * rank, *lost_O_I.shape), niter=4)
    pissa.put(layer, adapter, U_O_R[:, :rank], S_R[:rank], V_I_R.T[:rank])
    if layer.use_dora[adapter]:
        A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        layer.lora_magnitude_vector[adapter].update_layer(
            base_layer=base, lora_A=A, lora_B=B, scaling=layer.scaling[adapter]
        )


def _weights(model: Any, modules: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (module, weight) from the files of the model, by the names that transformers loaded them under.

    Raises InputError for a module whose weight is not in the files as it is in the model.
    """
    base = model.get_base_model()
    own = {f"{name}.weight": name for name in modules}
    known = {name.replace(".base_layer.", "."): True for name, _ in base.named_parameters()}
    renamings = [one for one in base._weight_conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in base._weight_conversions if isinstance(one, WeightConverter)]
    for file in weight_files(Path(base.name_or_path), "model.path"):
        with safe_open(file, "pt") as stream:
            for key in stream.keys():  # noqa: SIM118  # no dict
                name, made = rename_source_key(key, renamings, converters, base.base_model_prefix, known)
                if name in own and made is None:
                    yield own[name], _plain(stream.get_tensor(key), own.pop(name))
    if own:
        raise InputError("loftq.weights", PLACE, module=next(iter(own.values())))


def _plain(weight: torch.Tensor, module: str) -> torch.Tensor:
    if not weight.is_floating_point():
        raise InputError("loftq.weights", PLACE, module=module)
    return weight


def _bits(model: Any) -> dict[str, Any]:
    """Return the settings of a quantized model that decide what is lost."""
    given = model.config.to_dict().get("quantization_config") or {}
    return {key: given.get(key) for key in BITS}
