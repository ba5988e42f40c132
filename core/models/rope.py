"""Rotary positions stretched over longer inputs than a model was made for (transformers' modeling_rope_utils). Cold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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
UNTURNED = (
    "bloom", "deepseek_v4", "falcon_mamba", "glm5_next", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "jamba",
    "kimi_linear", "mamba", "mamba2", "mpt", "nemotron_h", "opt", "rwkv", "zamba", "zaya",
)  # fmt: skip
"""Types of text parts whose positions are not rotary, or not so that a config could stretch them."""


def check(told: Mapping[str, Any], model: str) -> None:
    """Raise InputError at model.rope for a type of model, or a switch in its config, that turns no positions.

    told: config.json, with that of its text part laid over it. model: the type of the whole.
    """
    text = str(told.get("model_type")).removesuffix("_text")
    if text in UNTURNED or told.get("alibi") or (text == "zamba2" and not told.get(TURNED)):
        raise _none(model)


def stretch(config: PreTrainedConfig, kind: str, wanted: int) -> None:
    """Set the rotary parameters of a config so that inputs of `wanted` tokens fit; nothing if they do already.

    Raises InputError at model.rope for a model whose positions are not rotary or are stretched already.
    """
    text: Any = config.get_text_config()
    told = text.to_dict()
    check(told, config.model_type)
    own, given = told.get("max_position_embeddings"), told.get("rope_parameters") or {}
    layered = FULL in given
    before = given.get(FULL, {}) if layered else given
    if not own or "rope_theta" not in before:
        raise _none(config.model_type)
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


def _none(model: str) -> InputError:
    return InputError("rope.none", "model.rope", model=model)
