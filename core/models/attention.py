"""Which implementation of attention a model is loaded with: one of our list, never a name out of a model's config.

Cold: the board checks it before a job is started.
"""

from __future__ import annotations

from core.errors import InputError
from core.sections import Model


def implementation(model: Model, device: str, *, training: bool) -> str | None:
    """Return what from_pretrained takes as attn_implementation, on "cpu", "cuda" or "mps".

    None, for auto, is sdpa, or eager for the models that sdpa can't compute; it also overrides what config.json asks
    for, which could be code of the hub. Raises InputError at model.attention for what this machine can't do.
    """
    check(model, device, training=training)
    if model.attention.startswith("flash"):
        from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

        if not (is_flash_attn_2_available() if model.attention == "flash_attention_2" else is_flash_attn_3_available()):
            raise InputError("model.attention", "model.attention", given=model.attention)
    return None if model.attention == "auto" else model.attention


def check(model: Model, device: str, *, training: bool) -> None:
    """Raise InputError at model.attention for what no device of this kind can do."""
    if model.attention.startswith("flash") and device != "cuda":
        raise InputError("model.attention", "model.attention", given=model.attention)
    if model.attention == "flex_attention" and device == "cpu" and training:  # torch has no backward for it there
        raise InputError("attention.flex", "model.attention")
