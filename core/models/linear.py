"""The linear layers of a model that an adapter can stand beside: found by walking it, not by name."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

KINDS = ("FalconLinear", "Linear4bit", "Linear8bitLt", "QuantLinear", "QuantizedLinear", "HQQLinear", "EetqLinear")
"""How the classes of linear layers end that compute in a way of their own: Falcon's, and quantized ones (bitsandbytes,
gptqmodel, aqlm, hqq, eetq)."""
APART = re.compile(r"(^|\.)(\w*router|gate|shared_expert_gate|lm_head)(\.|$)|(vision|visual|image|img|audio|speech)")
"""Names of layers that choose experts (few rows would teach them to send all to one), of heads, eyes and ears."""
FUSED = ("out_proj", "x_proj", "dt_proj")
"""Layers of Mamba's kin whose weights a fused kernel reads past any adapter."""


def linear(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers of the text part: not the head, no router, no tower that sees or hears."""
    head = model.get_output_embeddings()
    within = _decoder(model)
    fused = {f"{name}.{part}" for name, module in model.named_modules()
             if re.search(r"[Mm]amba|Mixer$", type(module).__name__) for part in FUSED}  # fmt: skip
    return [
        name
        for name, module in model.named_modules()
        if module is not head and name.startswith(within) and name not in fused
        if _multiplies(module) and not APART.search(name)
    ]


def short(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Return the last parts of names where they mean the same layers: that is how adapters are read elsewhere."""
    lasts = sorted({name.rpartition(".")[2] for name in names})
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in lasts]
    return lasts if sorted(meant) == sorted(names) else names


def _multiplies(module: torch.nn.Module) -> bool:
    """Return whether a module multiplies by its weight and does nothing else."""
    kind = type(module)
    return kind.__name__.endswith(KINDS) or kind.forward in (torch.nn.Linear.forward, Conv1D.forward)


def _decoder(model: Any) -> str:
    """Return the prefix of the part that writes text; "" where the model is nothing else."""
    decoder = model.get_decoder()
    found = next((name for name, module in model.named_modules() if module is decoder), "")
    return f"{found}." if found else ""
