"""The shapes of a decoder from its config.json alone, where its files are not here or hold packed weights. Cold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.models.shapes import NUMBERS, Shapes

LARGEST, MOST_LAYERS = 1 << 24, 512
UNLIKE = (
    "phi", "starcoder2", "gpt_neox", "opt", "falcon", "mamba", "mamba2", "falcon_mamba", "rwkv", "lfm2", "nemotron"
)  # fmt: skip
"""Types whose blocks are no usual ones: two matrices in the MLP, or no attention."""
TIED = ("gemma", "cohere")
NORMED = ("qwen3", "gemma3", "gemma4", "olmo2", "olmo3", "olmoe", "exaone4", "dots1")
"""Beginnings of types that have norms of queries and keys, of which no config tells."""


def of_config(config: Mapping[str, Any]) -> Shapes | None:
    """Return the shapes that a decoder of this config has; None where the config does not tell them.

    For models whose files are not here, or hold packed weights: the matrices of a block by the names that most
    architectures share, with attention through latent vectors and experts where the config speaks of them.
    """
    if str(config.get("model_type")) in UNLIKE:
        return None
    told = [config.get(key) for keys in NUMBERS.values() for key in keys]
    if any(value is not None and not (isinstance(value, int) and 0 <= value <= LARGEST) for value in told):
        return None
    size = {name: next((config[key] for key in keys if config.get(key)), 0) for name, keys in NUMBERS.items()}
    width, vocabulary, layers = size["width"], size["vocabulary"], size["layers"]
    if not all((width, vocabulary, size["inner"], size["heads"])) or not 0 < layers <= MOST_LAYERS:
        return None
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    tied = str(config.get("model_type")).startswith(TIED)  # where the config does not say it
    if not config.get("tie_word_embeddings", tied):
        tensors["lm_head.weight"] = (vocabulary, width)
    normed = str(config.get("model_type")).startswith(NORMED)
    for index in range(layers):
        parts = (_latent if size["latent"] else _attention)(size) | (
            _experts if size["experts"] and index >= size["dense"] else _dense
        )(size)
        if normed:
            parts |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), (size["head"],))
        tensors |= {f"model.layers.{index}.{name}.weight": shape for name, shape in parts.items()}
    return Shapes(tensors, config)


def _attention(size: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of attention and of the norms of a block, by the names of their modules."""
    width, heads = size["width"], size["heads"]
    head = size["head"] or width // heads
    groups = size["groups"] or heads
    return {
        "self_attn.q_proj": (heads * head, width),
        "self_attn.k_proj": (groups * head, width),
        "self_attn.v_proj": (groups * head, width),
        "self_attn.o_proj": (width, heads * head),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }


def _latent(size: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the same of attention through latent vectors (DeepSeek-V2, arXiv 2405.04434)."""
    width, heads, latent, latent_q = size["width"], size["heads"], size["latent"], size["latent_q"]
    asked = heads * (size["unturned"] + size["turned"])
    queries: dict[str, tuple[int, ...]] = {"self_attn.q_proj": (asked, width)}
    if latent_q:
        queries = {"self_attn.q_a_proj": (latent_q, width), "self_attn.q_a_layernorm": (latent_q,),
                   "self_attn.q_b_proj": (asked, latent_q)}  # fmt: skip
    return queries | {
        "self_attn.kv_a_proj_with_mqa": (latent + size["turned"], width),
        "self_attn.kv_a_layernorm": (latent,),
        "self_attn.kv_b_proj": (heads * (size["unturned"] + size["value"]), latent),
        "self_attn.o_proj": (width, heads * size["value"]),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }


def _dense(size: Mapping[str, int], name: str = "mlp", inner: int = 0) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an MLP with a gate."""
    width, inner = size["width"], inner or size["inner"]
    return {
        f"{name}.gate_proj": (inner, width),
        f"{name}.up_proj": (inner, width),
        f"{name}.down_proj": (width, inner),
    }


def _experts(size: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of experts, of the router that chooses among them, and of an MLP that always works."""
    width, inner, count = size["width"], size["small"] or size["inner"], size["experts"]
    found: dict[str, tuple[int, ...]] = {
        "mlp.gate": (count, width),
        "mlp.experts.gate_up_proj": (count, 2 * inner, width),
        "mlp.experts.down_proj": (count, width, inner),
    }
    if always := size["beside"] or size["shared"] * inner:
        found |= _dense(size, "mlp.shared_experts", always)
    return found
