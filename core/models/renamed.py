"""Weights as a model has them in memory, where its files name, stack or divide them otherwise. Cold.

So far as plans go by names and matrices: what transformers does with all the rest, its conversion_mapping.py tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from core.models.shapes import learnable

Tensors = Mapping[str, tuple[int, ...]]
Rules = tuple[tuple[str, str], ...]

ANY: Rules = (
    (r"^(?=(h\.\d+|w[tp]e|ln_f|word_embeddings\w*)\.)", "transformer."),  # as in the first files of GPT-2 and BLOOM
    (r"^embed_out\.", "lm_head."),
)
"""Pattern -> what stands in its place, one after the other, for models of any type."""
TEXT: Rules = ((r"^model\.(?=(embed_tokens|layers|norm)\.)", "model.language_model."),)
BY_TYPE: Mapping[str, Rules] = {
    "deepseek_v4": (
        (r"^embed\.", "embed_tokens."), (r"^head\.", "lm_head."), (r"\.attn\.", ".self_attn."), (r"\.ffn\.", ".mlp."),
        (r"\.indexer\.compressor\.", ".compressor.indexer."), (r"\.attn_norm\.", ".input_layernorm."),
        (r"\.ffn_norm\.", ".post_attention_layernorm."), (r"\.hc_(attn|ffn)_", r".\1_hc."), (r"\.attn_sink$", ".sinks"),
        (r"\.indexer\.weights_proj\.", ".compressor.indexer.scorer.weights_proj."),
        (r"\.self_attn\.indexer\.wq_b\.", ".self_attn.compressor.indexer.q_b_proj."),
        (r"\.(self_attn|compressor|indexer)\.norm\.", r".\1.kv_norm."),
        (r"\.ape$", ".position_bias"), (r"\.wgate\.", ".gate_proj."), (r"\.wkv\.", ".kv_proj."),
        (r"\.w([qo]_[ab])\.", r".\1_proj."), (r"\.q_norm\.", ".q_a_norm."),
        (r"\.w1(?=\.|$)", ".gate_proj"), (r"\.w2(?=\.|$)", ".down_proj"), (r"\.w3(?=\.|$)", ".up_proj"),
        (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    ),
    "ernie4_5_vl_moe": (*TEXT, (r"^model\.vision_model\.", "model.vision_tower.")),
    "hunyuan_vl": TEXT,
    "hy_v3": (
        (r"\.shared_mlp\.", ".shared_experts."), (r"\.router\.gate\.", ".gate."),
        (r"\.expert_bias$", ".e_score_correction_bias"),
    ),
    "molmo2": (
        (r"^model\.transformer\.wte\.embedding$", "model.language_model.embed_tokens.weight"),
        (r"^model\.transformer\.ln_f\.", "model.language_model.norm."),
        (r"^model\.transformer\.blocks\.", "model.language_model.layers."),
        (r"\.attn_norm\.", ".input_layernorm."), (r"\.ff_norm\.", ".post_attention_layernorm."),
        (r"\.attn_out\.", ".o_proj."), (r"\.ff_out\.", ".down_proj."),
    ),
    "nemotron_h": ((r"^backbone\.", "model."),),
    "nemotron_h_omni": ((r"^language_model\.backbone\.", "language_model.model."),),
    "paddleocr_vl": TEXT,
    "qwen2_5_vl": TEXT,
    "qwen2_vl": TEXT,
    "step3p7": (
        *TEXT, (r"\.moe\.(up|gate|down)_proj\.weight$", r".mlp.experts.\1_proj"), (r"\.moe\.", ".mlp."),
        (r"\.share_expert\.", ".mlp.shared_experts."),
    ),
}  # fmt: skip


def as_loaded(tensors: Tensors, model_type: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the weights of a model in memory, of those in its files; no buffers."""
    rules = [(re.compile(pattern), other) for pattern, other in (*ANY, *BY_TYPE.get(model_type, ()))]
    found = {}
    for name, shape in _stacked(tensors, model_type).items():
        for pattern, other in rules:
            name = pattern.sub(other, name)
        if learnable(name):
            found[name] = shape
    return _divided(found) if model_type == "molmo2" else found


def _stacked(tensors: Tensors, model_type: str) -> dict[str, tuple[int, ...]]:
    """Return weights with the matrices of experts that lie apart in files stacked to one of each kind."""
    found: dict[str, tuple[int, ...]] = {}
    experts: dict[tuple[str, str], dict[int, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        before, _, after = name.partition(".experts.")
        number, _, kind = after.partition(".")
        if number.isdigit() and kind.endswith(".weight"):
            experts.setdefault((before, kind.removesuffix(".weight")), {})[int(number)] = shape
        else:
            found[name] = shape
    for (before, kind), apart in experts.items():
        shapes = [apart[number] for number in sorted(apart)]
        if model_type == "ernie4_5_vl_moe":  # as many for images come after those for texts
            half = -(-len(shapes) // 2)
            found[f"{before}.text_moe.experts.{kind}"] = (half, *shapes[0])
            found[f"{before}.vision_moe.experts.{kind}"] = (len(shapes) - half, *shapes[-1])
        else:
            found[f"{before}.experts.{kind}"] = (len(shapes), *shapes[0])
    return found


def _divided(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Return the weights of Molmo2, whose files have queries, keys and values in one, gates, too, a table in two."""
    found = dict(tensors)
    for name, (rows, *rest) in tensors.items():
        before, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind == "new_embedding":
            table = "model.language_model.embed_tokens.weight"
            found[table] = (rows + tensors[table][0], *found.pop(name)[1:])
        elif kind == "ff_proj":
            found |= {f"{before}.{part}.weight": (rows // 2, *rest) for part in ("up_proj", "gate_proj")}
            del found[name]
        elif kind == "att_proj":
            asked = tensors[f"{before}.o_proj.weight"][1]
            found[f"{before}.q_proj.weight"] = (asked, *rest)
            found |= {f"{before}.{part}.weight": ((rows - asked) // 2, *rest) for part in ("k_proj", "v_proj")}
            del found[name]
    return found
