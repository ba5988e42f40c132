"""The shapes of a decoder from its config.json alone, where its files are not here or hold packed weights. Cold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.models.shapes import NUMBERS, WHOLE_TYPE, Shapes

LARGEST, MOST_LAYERS = 1 << 24, 512
UNLIKE = ("phi", "starcoder2", "gpt_neox", "opt", "falcon", "rwkv", "nemotron", "jetmoe", "idefics2", "lighton_ocr")
"""Types with other parts than are told here: another MLP, heads that are experts, a resampler, a head that is tied."""
SCANS = re.compile(r"(mamba|linear|conv)_|lru_width$|(ssm_)?state_size$")
"""Beginnings of keys of config.json where states go from token to token in some blocks: it tells too little."""
UNGATED = ("arcee", "jais2", "nanochat", "apertus", "persimmon", "fuyu")
"""Types that have no gate in the MLP."""
TOWERS = {"vision_tower": "vision_config", "audio_tower": "audio_config"}
TOWER = {
    "width": ("embed_dim", "d_model", "hidden_size"), "layers": ("num_hidden_layers", "depth", "encoder_layers"),
    "inner": ("intermediate_size", "encoder_ffn_dim"),
}  # fmt: skip
"""Keys of their configs that tell their sizes; several where architectures differ."""
TIED = ("gemma", "cohere")
NORMED = ("qwen3", "gemma3", "gemma4", "olmo2", "olmo3", "olmoe", "exaone4", "dots1")
"""Beginnings of types that have norms of queries and keys, of which no config tells."""


def of_config(config: Mapping[str, Any]) -> Shapes | None:
    """Return the shapes that a decoder of this config has; None where the config does not tell them.

    For models whose files are not here, or hold packed weights: the matrices of a block by the names that most
    architectures share, with attention through latent vectors, experts, eyes and ears where the config speaks of them.
    """
    kinds = {str(config.get(key)) for key in ("model_type", WHOLE_TYPE)}
    if not kinds.isdisjoint(UNLIKE) or any(SCANS.match(key) for key in config):
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
    for index in range(layers):
        parts = _block(size, index, str(config.get("model_type")))
        tensors |= {f"model.layers.{index}.{name}.weight": shape for name, shape in parts.items()}
    if size["words_each"] and size["each"]:
        tensors["model.embed_tokens_per_layer.weight"] = (size["words_each"], layers * size["each"])
        tensors["model.per_layer_model_projection.weight"] = (layers * size["each"], width)
    for name, key in TOWERS.items():
        if part := config.get(key):
            if not (tower := _tower(name, part)):
                return None
            tensors |= tower
    return Shapes(tensors, config)


def _block(size: Mapping[str, int], index: int, model_type: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one block."""
    parts = (_latent if size["latent"] else _attention)(size)
    if size["experts"] and index >= size["dense"]:
        parts |= _experts(size)
    else:
        parts |= _dense(size, gated=model_type not in UNGATED)
    if model_type.startswith(NORMED):
        parts |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), (size["head"],))
    if size["words_each"] and size["each"]:
        parts["per_layer_input_gate"] = (size["each"], size["width"])
        parts["per_layer_projection"] = (size["width"], size["each"])
    return parts


def _tower(name: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of eyes or ears, blocks of a transformer as they mostly are; none where they are not told."""
    if not isinstance(config, dict):
        return {}
    size = {part: next((config[key] for key in keys if config.get(key)), 0) for part, keys in TOWER.items()}
    if not all(isinstance(value, int) and 0 <= value <= LARGEST for value in size.values()):
        return {}
    if not size["width"] or not 0 < size["layers"] <= MOST_LAYERS:
        return {}
    gated = config.get("hidden_act") == "silu" or config.get("model_type") == "pixtral"
    whole = {"heads": 1, "head": 0, "groups": 0, **size, "inner": size["inner"] or 4 * size["width"]}
    parts = _attention(whole) | _dense(whole, gated=gated)
    return {f"{name}.layers.{index}.{part}.weight": shape
            for index in range(size["layers"]) for part, shape in parts.items()}  # fmt: skip


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


def _dense(
    size: Mapping[str, int], name: str = "mlp", inner: int = 0, *, gated: bool = True
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an MLP."""
    width, inner = size["width"], inner or size["inner"]
    found: dict[str, tuple[int, ...]] = {f"{name}.up_proj": (inner, width), f"{name}.down_proj": (width, inner)}
    return {f"{name}.gate_proj": (inner, width)} | found if gated else found


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
