"""PiSSA (Meng et al., arXiv 2404.02948): an adapter begins with the principal parts of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from core.errors import InputError
from core.files import aside

WEIGHTS = "adapter_model.safetensors"


def begin(model: Any, beginning: Path, adapter: str) -> None:
    """Move the largest singular parts of each weight into its adapter: W = (W - s·B·A) + s·B·A.

    They are kept in `beginning`, for as_plain() and for a resumed run, which takes the same parts out of the base.
    """
    found: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    layers = list({id(layer.get_base_layer().weight): layer for layer in found}.values())  # some share it
    if beginning.is_dir():
        set_peft_model_state_dict(model, load_file(beginning / WEIGHTS), adapter)
    else:
        for layer in layers:
            _set_principal(layer, adapter)
        with aside(beginning) as place:
            model.save_pretrained(place)
    for layer in layers:
        weight = layer.get_base_layer().weight
        weight.data = (weight.data.float() - layer.get_delta_weight(adapter)).to(weight.dtype)


def as_plain(adapter: Path, beginning: Path) -> None:
    """Rewrite an adapter to fit the whole base: s·B·A - s·B0·A0 is one product of twice the rank.

    peft has a conversion of its own, which loses the magnitudes of DoRA.
    """
    now, then = load_file(adapter / WEIGHTS), load_file(beginning / WEIGHTS)
    for name in now:
        if "lora_A" in name:
            now[name] = torch.cat([now[name], then[name]], dim=0)
        elif "lora_B" in name:
            now[name] = torch.cat([now[name], -then[name]], dim=1)
    save_file(now, adapter / WEIGHTS, metadata={"format": "pt"})
    config: Any = LoraConfig.from_pretrained(str(adapter))
    config.r, config.lora_alpha = 2 * config.r, config.lora_alpha * (2**0.5 if config.use_rslora else 2)  # s stays
    config.save_pretrained(str(adapter))


def _set_principal(layer: Any, adapter: str) -> None:
    """Set A and B of a layer to the roots of its largest singular parts, so that s·B·A is their sum.

    Raises InputError when the weight has fewer of them than the rank asks for.
    """
    rank, base = layer.r[adapter], layer.get_base_layer()
    weight_O_I = base.weight.data.T if isinstance(base, Conv1D) else base.weight.data  # which lies crosswise
    if rank > min(weight_O_I.shape):
        raise InputError("lora.pissa_rank", "tuner.lora.rank", rank=rank, limit=min(weight_O_I.shape))
    U_O_R, S_R, Vh_R_I = torch.linalg.svd(weight_O_I.float(), full_matrices=False)
    put(layer, adapter, U_O_R[:, :rank], S_R[:rank], Vh_R_I[:rank])


def put(layer: Any, adapter: str, U_O_R: torch.Tensor, S_R: torch.Tensor, Vh_R_I: torch.Tensor) -> None:
    """Set the first rows of A and columns of B of a layer so that s·B·A is the sum of singular parts."""
    root_R, rank = (S_R / layer.scaling[adapter]).sqrt(), len(S_R)
    # copied into place: fused AdamW goes wrong where a weight and its loaded state lie in memory in different ways
    layer.lora_A[adapter].weight.data[:rank].copy_(root_R[:, None] * Vh_R_I)
    layer.lora_B[adapter].weight.data[:, :rank].copy_(U_O_R * root_R)
