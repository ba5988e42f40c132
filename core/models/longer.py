"""Between whose blocks there is no place for more, by the type of a model and its config alone. Cold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import InputError
from core.models.shapes import Shapes, order

NEVER = (
    "deepseek_v4", "glm5_next", "longcat_flash", "minicpm3", "minimax", "molmo2", "recurrent_gemma", "rwkv",
)  # fmt: skip
"""Types whose blocks never hand on just what they are given, or that keep elsewhere how many there are."""
OF_EACH = "embed_tokens_per_layer"
"""A table, as Gemma's, with columns for each block."""
FIRST = {"afmoe": "num_dense_layers", "deepseek_v3": "first_k_dense_replace", "glm4_moe": "first_k_dense_replace",
         "glm4v_moe": "first_k_dense_replace", "lfm2_moe": "num_dense_layers"}  # fmt: skip
"""Type -> key of how many blocks at the beginning have no experts."""
LISTED = {"bamba": "attn_layer_indices", "llama4": "moe_layers", "mllama": "cross_attention_layers",
          "zamba2": "hybrid_layer_ids"}  # fmt: skip
"""Type -> key of the numbers of blocks that are of another kind."""
REGULAR = {"jamba": ("attn", "expert")}
"""Type -> beginnings of keys of how often blocks of another kind come (…_layer_period, …_layer_offset)."""


def check(shapes: Shapes, count: int) -> None:
    """Raise InputError for files of a model that would not be loaded with so many new blocks, or answer otherwise."""
    before = len(shapes.blocks)
    kinds = [_kind(shapes.type, shapes.config, number) for number in range(before + count)]
    moved = any(kinds[place] != kinds[number] for place, number in enumerate(order(before, count)))
    if shapes.type in NEVER or OF_EACH in shapes.parts or moved:
        raise unfit(shapes.type)


def unfit(model_type: str) -> InputError:
    """Return the error for a model between whose blocks there is no place for more."""
    return InputError("expand.unfit", "tuner", model=model_type)


def _kind(model_type: str, config: Mapping[str, Any], number: int) -> list[bool]:
    """Return what a config says of the block of a number by that number; one that leaves it open says nothing."""
    first, listed = config.get(FIRST.get(model_type, "")), config.get(LISTED.get(model_type, ""))
    found = [number < first] if isinstance(first, int) else []
    found += [number in listed] if isinstance(listed, list) else []
    for name in REGULAR.get(model_type, ()):
        period, offset = (config.get(f"{name}_layer_{end}") for end in ("period", "offset"))
        if isinstance(period, int) and isinstance(offset, int) and period > 0:
            found.append(number % period == offset)
    return found
