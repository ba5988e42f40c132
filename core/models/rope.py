"""Rotary positions stretched over longer inputs than a model was made for (transformers' modeling_rope_utils)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from core.errors import InputError

OF_KIND: dict[str, dict[str, float]] = {
    "linear": {},
    "dynamic": {},
    "yarn": {},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
"""What each way needs beside the factor; llama3: the values of Llama 3.1."""
FULL = "full_attention"
"""The layers that are stretched in a model whose layers differ: those that look back only so far need nothing."""

TURNED = "use_mem_rope"
"""Key by which Zamba2 says whether its positions are rotary at all: mostly they aren't, though it has parameters."""


def stretch(config: PreTrainedConfig, kind: str, wanted: int) -> None:
    """Set the rotary parameters of a config so that inputs of `wanted` tokens fit; nothing if they do already.

    Raises InputError at model.rope for a model whose positions are not rotary or are stretched already.
    """
    text: Any = config.get_text_config()
    told = text.to_dict()
    own, given = told.get("max_position_embeddings"), told.get("rope_parameters") or {}
    layered = FULL in given
    before = given.get(FULL, {}) if layered else given
    if not own or "rope_theta" not in before or told.get(TURNED) is False:
        raise InputError("rope.none", "model.rope", model=config.model_type)
    if wanted <= own:
        return
    if before.get("rope_type", "default") != "default":
        raise InputError("rope.twice", "model.rope", given=str(before["rope_type"]))
    heads, width = told.get("num_attention_heads"), told.get("hidden_size")
    if "head_dim" in told and told["head_dim"] is None and heads and width:
        text.head_dim = width // heads  # yarn and dynamic take it from the config alone
    made = {**before, **OF_KIND[kind], "rope_type": kind, "factor": wanted / own}
    if kind in ("yarn", "llama3"):
        made["original_max_position_embeddings"] = own
    text.rope_parameters = {**given, FULL: made} if layered else made
    if kind != "dynamic":  # which stretches beyond what this says, as far as an input asks for
        text.max_position_embeddings = wanted


def context(config: PreTrainedConfig) -> int:
    """Return the longest input in tokens; a very large number for a model without a limit of its own."""
    told = config.get_text_config().to_dict()
    own, given = told.get("max_position_embeddings"), told.get("rope_parameters") or {}
    made = given.get(FULL, given)
    factor = made.get("factor", 1) if made.get("rope_type") == "dynamic" else 1
    return int(own * factor) if own else 1 << 30
