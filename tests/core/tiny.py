"""A random model of two layers for a model type that transformers knows, and text for it.

Sizes are told by the names of the config's fields; EXCEPTIONS holds what the names can't tell.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HIDDEN, LAYERS, VOCABULARY, FIRST_SPECIAL = 64, 2, 256, 200
"""Ids from FIRST_SPECIAL on stand for images and the like; texts have none of them."""
AUTO: tuple[tuple[Any, dict[str, Any]], ...] = (
    (AutoModelForMultimodalLM, modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
    (AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
)
SIZES = tuple(
    (re.compile(pattern), size)
    for pattern, size in (
        (r"vocab_size|num_embeds$", VOCABULARY),
        (r"max_(position|source|target|seq)|n_positions|n_ctx|context_length|seq_len$", 128),
        (r"sliding_window|window_size|^local_attention$", 16),
        (r"mamba_n(um)?_heads", 8),
        (r"head_dim|head_size$|dim_head$|d_head$|^d_kv$|kv_channels|rotary_dim", 16),
        (r"key_value_heads|kv_heads|n_head_kv|linear_(num_)?key_heads", 2),
        (r"(^|_)n?_?heads?$|num_heads|attention_heads|_value_heads", 4),
        (r"_rank$", 16),
        (r"(^|_)layers?$|depth$|num_blocks$", LAYERS),
        (r"num_experts$|num_local_experts|n_routed_experts|zero_expert_num", 4),
        (r"experts_per_tok|top_?k$|experts_per_token|top_k_experts|moe_k$", 2),
        (r"^n_group$|topk_group", 1),
        (r"intermediate_size|ffn|mlp_dim|^d_ff$|feed_forward_size|d_ssm", 2 * HIDDEN),
        (r"hidden_size|d_model|n_embd|embedding_size|(^|_)dim$|_dim_|lru_width|word_embed", HIDDEN),
        (r"state_size|d_state|chunk_size", 16),
        (r"channels$", 32),
        (r"^image_size|crop_size", 32),
        (r"^patch_size$", 8),
    )
)
UNSET = {"head_dim": 16, "num_key_value_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1,
         "num_experts_per_tok": 2}  # fmt: skip
"""Sizes that some configs leave open though their models need them."""
NOT_SIZES = re.compile(r"num_channels|in_channels|^num_labels$")
SPECIAL = re.compile(r"(^|_)(token|patch|start|end|pad|newline|bos|eos)_(id|index)$")


def _rope(sections: list[int], **more: Any) -> dict[str, Any]:
    """Return rotary settings whose sections (time, height, width) make up half of the rotated part of a head."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **more}}


EXCEPTIONS: dict[str, dict[str, Any]] = {
    # rotary sections count half of a head, and a head is 16 wide here
    "qwen2_vl_text": _rope([2, 3, 3]),
    "qwen2_5_vl_text": _rope([2, 3, 3]),
    "qwen2_5_omni_text": _rope([2, 3, 3]),
    "hunyuan_vl_text": _rope([2, 2, 2, 2]),
    "paddleocr_vl_text": _rope([2, 3, 3]),
    "glm4v_text": _rope([2, 3, 3]),
    "glm_ocr_text": _rope([2, 3, 3]),
    "glm4v_moe_text": _rope([1, 1, 2], partial_rotary_factor=0.5),
    "ernie4_5_vl_moe_text": _rope([3, 3, 2]) | {"moe_intermediate_size": [64, 32]},
    # the full attention of these has heads of its own size
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    # None by default, which no model of these types has
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "chameleon": {"vocabulary_map": {"<image>": 210}},
    "step3p5": {"sliding_window": 16},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 210, "vision_end_token_id": 211},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 210, "vision_end_token_id": 211},
    # what speaks stays away: only what writes is trained
    "qwen2_5_omni": {"enable_audio_output": False},
    "qwen3_omni_moe": {"enable_audio_output": False},
    # both kinds of layer in two layers
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    # the second shared block takes its weights from the first, so there must be two
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    # sizes that follow from others: heads x width, two kinds of parts of a head, layers that are looked at
    "mamba2": {"num_heads": 8},
    "falcon_h1": {"mamba_d_head": 16},
    "glm5_next_text": {"index_topk": 16},
    "longcat_flash": {"qk_head_dim": 32},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    # no layer may take another's keys when there are but two
    "gemma3n_text": {"num_kv_shared_layers": 0},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return a config of the type with every size made small, sub-configs included."""
    return _shrunk(CONFIG_MAPPING[model_type], {})


def tiny_model(model_type: str) -> PreTrainedModel:
    """Build the random model of a type with the first auto class that has one: the whole, not its text part alone."""
    auto = next(auto for auto, names in AUTO if model_type in names)
    torch.manual_seed(0)
    return auto.from_config(tiny_config(model_type))


def tiny_batch(*more: str) -> dict[str, torch.Tensor]:
    """Return two rows of text with labels, the second ends in padding; `more` names inputs that are all zero."""
    input_ids_B_S = torch.arange(120, 152).reshape(2, 16)
    attention_mask_B_S = torch.ones_like(input_ids_B_S)
    attention_mask_B_S[1, -3:] = 0
    labels_B_S = input_ids_B_S.masked_fill(attention_mask_B_S == 0, -100)
    rows = {"input_ids": input_ids_B_S, "attention_mask": attention_mask_B_S, "labels": labels_B_S}
    return rows | {name: torch.zeros_like(input_ids_B_S) for name in more}


def _shrunk(cls: type[PreTrainedConfig], given: dict[str, Any]) -> PreTrainedConfig:
    """Return a config of the class with every size made small; `given` is what its parent sets."""
    full = cls(**given)
    settings = dict(given)
    # vars, because a config whose layers differ refuses to be asked for what differs
    values = {name: vars(full).get(cls.attribute_map.get(name, name)) for name in cls.__dataclass_fields__}
    for place, (name, value) in enumerate(sorted(values.items())):
        if isinstance(value, PreTrainedConfig):
            spec = cls.sub_configs_defaults.get(name)
            settings[name] = _shrunk(type(value), dict(getattr(spec, "init_kwargs", {})))
        elif isinstance(value, int) and not isinstance(value, bool):
            settings[name] = _small(name, value, place)
        elif isinstance(value, (list, tuple)) and name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            settings[name] = _small(name, value[0], place)
        elif isinstance(value, (list, tuple)) and LAYERS < len(value) == values.get("num_hidden_layers"):
            settings[name] = type(value)(_two(value))
        elif value is None and name in UNSET:
            settings[name] = UNSET[name]
    if "kv_lora_rank" in values:  # latent attention has no groups
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    return cls(**settings | EXCEPTIONS.get(cls.model_type, {}))


def _small(name: str, value: int, place: int) -> int:
    """Return a small value for a size, an id inside the vocabulary for a token, other numbers as they are."""
    if SPECIAL.search(name):
        return value if value < FIRST_SPECIAL else FIRST_SPECIAL + place % (VOCABULARY - FIRST_SPECIAL)
    if NOT_SIZES.search(name):
        return value
    return next((min(value, size) for pattern, size in SIZES if pattern.search(name)), value)


def _two(values: Any) -> list[Any]:
    """Return the first of the values and the first that differs from it, or the first twice."""
    return [values[0], next((value for value in values if value != values[0]), values[0])]
