"""Fused kernels for GPUs (Liger, Hsu et al., arXiv 2410.10989): norms, positions and gated MLPs in one pass each.

Its fused losses are not taken: ours computes logits of the learned places alone, and in parts where they are many.
"""

from __future__ import annotations

from typing import Any

from core.errors import InputError
from core.models.packages import check_here, require

PLACE = "training.liger"
PACKAGE = "liger_kernel"


def check(device: str) -> None:
    """Raise InputError where this machine can't use them; device: "cpu", "cuda" or "mps"."""
    if device != "cuda":
        raise InputError("liger.device", PLACE, device=device)
    check_here(PACKAGE, PLACE)


def fuse(model: Any) -> None:
    """Let a model, with its adapter, compute with them. Raises InputError for a type that they do not know."""
    require(PACKAGE, PLACE)
    from liger_kernel.transformers import monkey_patch as kernels
    from transformers.trainer_utils import unwrap_peft_model

    base = unwrap_peft_model(model)
    if base.config.model_type not in kernels.MODEL_TYPE_TO_APPLY_LIGER_FN:  # passed over without a word
        raise InputError("liger.model", PLACE, model=base.config.model_type)
    kernels._apply_liger_kernel_to_instance(model=base, cross_entropy=False, fused_linear_cross_entropy=False)
