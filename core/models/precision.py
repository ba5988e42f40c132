"""Number formats in training, beyond mixed precision: what learns in 16 bits, what is computed in 32."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import PeftModel
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from core.errors import InputError

NORM = re.compile(r"(RMS|Layer)Norm")
"""In the names of the classes of normalization layers."""
SMALL = 1024
"""Bytes; moving less costs more than it saves."""


def narrow(model: PreTrainedModel | PeftModel) -> None:
    """Let what learns be bf16: half the memory for it, its gradients and the optimizer, but small steps are lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def upcast_norms(model: PreTrainedModel | PeftModel) -> None:
    """Hold and compute normalization layers in fp32; what they give is in the format that it was in before."""
    for module in model.modules():
        if NORM.search(type(module).__name__):
            own = next((weight.dtype for weight in module.parameters()), torch.float32)
            module.float().forward = _in_fp32(module.forward, own)


def _in_fp32(forward: Any, own: torch.dtype) -> Any:
    """Return a forward that computes in fp32; own: that of its weights, to which some models cast their inputs."""

    def computed(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = own if hidden.dtype is torch.float32 else hidden.dtype
        return forward(hidden.float(), *args, **kwargs).to(given)

    return computed


def upcast_logits(model: PreTrainedModel | PeftModel) -> None:
    """Give logits in fp32, so that the loss adds up exact numbers. Raises InputError for a model without a head."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.get_output_embeddings()
    if head is None:
        raise InputError("precision.no_head", "training.upcast_logits", model=base.config.model_type)
    head.register_forward_hook(lambda module, args, logits: logits.float())


def offloading(model: torch.nn.Module) -> saved_tensors_hooks:
    """Return a context in which what the backward pass needs waits in the memory of the machine, not of the GPU.

    Weights stay where they are: they are no copies, so nothing would be won.
    """
    weights = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    pinned = torch.cuda.is_available()  # memory that the GPU reads by itself, while it computes on

    def pack(saved: torch.Tensor) -> Any:
        if saved.nbytes < SMALL or saved.untyped_storage().data_ptr() in weights:
            return saved
        held = torch.empty_like(saved, device="cpu", pin_memory=pinned)
        return saved.device, held.copy_(saved, non_blocking=pinned)

    def unpack(kept: Any) -> torch.Tensor:
        return kept if isinstance(kept, torch.Tensor) else kept[1].to(kept[0], non_blocking=pinned)

    return saved_tensors_hooks(pack, unpack)
