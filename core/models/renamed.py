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
MIXTRAL: Rules = ((r"\.block_sparse_moe\.", ".mlp."),)
GRANITE: Rules = (
    (r"\.block_sparse_moe\.input_linear\.weight$", ".block_sparse_moe.experts.gate_up_proj"),
    (r"\.block_sparse_moe\.output_linear\.weight$", ".block_sparse_moe.experts.down_proj"),
    (r"\.router\.layer\.", ".router."),
)
STACKED: Rules = ((r"\.[qkv]_conv1d\.", ".conv1d."),)
DELTA: Rules = (*STACKED, (r"\.self_attn\.(f_[ab]_proj\.)", r".self_attn.forget_gate.\1"))
"""The decay of these lies in the gate in memory, too; scans.py looks for it beside the rest of the rule."""
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
    "ernie4_5_moe": ((r"\.mlp\.moe_statics\.", ".mlp.gate.moe_statics."),),
    "ernie4_5_vl_moe": (
        *TEXT, (r"^model\.vision_model\.", "model.vision_tower."),
        (r"\.mlp\.moe_statics\.", ".mlp.gate.moe_statics."), (r"\.mlp\.gate\.(?!weight_1)", ".mlp.text_moe.gate."),
        (r"\.mlp\.gate\.weight_1$", ".mlp.vision_moe.gate.weight"),
        (r"(l_linear)\.0\.", r"\1.fc1."), (r"(l_linear)\.2\.", r"\1.fc2."), (r"(l_linear)\.3\.", r"\1.ln."),
    ),
    "glm5_next": (*DELTA, (r"\.hc_(attn|ffn)_", r".\1_hc.")),
    "granitemoe": GRANITE,
    "granitemoehybrid": GRANITE,
    "hunyuan_vl": (*TEXT, (r"^vit\.", "model.vision_tower.")),
    "hy_v3": (
        (r"\.shared_mlp\.", ".shared_experts."), (r"\.router\.gate\.", ".gate."),
        (r"\.expert_bias$", ".e_score_correction_bias"),
    ),
    "kimi_k25": (
        (r"^language_model\.model\.blocks\.", "language_model.model.layers."),
        (r"^mm_projector\.proj\.0\.", "mm_projector.in_proj."), (r"^mm_projector\.proj\.2\.", "mm_projector.out_proj."),
    ),
    "kimi_linear": (*MIXTRAL, *DELTA),
    "laguna": ((r"\.shared_expert\.", ".shared_experts."),),
    "minimax": MIXTRAL,
    "minimax_m2": MIXTRAL,
    "mixtral": MIXTRAL,
    "molmo2": (
        (r"^model\.transformer\.wte\.embedding$", "model.language_model.embed_tokens.weight"),
        (r"^model\.transformer\.ln_f\.", "model.language_model.norm."),
        (r"^model\.transformer\.blocks\.", "model.language_model.layers."),
        (r"\.attn_norm\.", ".input_layernorm."), (r"\.ff_norm\.", ".post_attention_layernorm."),
        (r"\.attn_out\.", ".o_proj."), (r"\.ff_out\.", ".down_proj."),
        (r"\.vision_backbone\.image_vit\.transformer\.resblocks\.", ".vision_tower.layers."),
        (r"\.vision_backbone\.image_vit\.", ".vision_tower."), (r"\.attention\.w([qkvo])\.", r".self_attn.\1_proj."),
        (r"\.feed_forward\.w([12])\.", r".mlp.fc\1."), (r"\.attention_norm\.", ".layer_norm1."),
        (r"\.ffn_norm\.", ".layer_norm2."),
        (r"\.vision_backbone\.", ".multi_modal_projector."), (r"(\.image_pooling_2d)\.w([qkvo])\.", r"\1.\2_proj."),
        (r"(\.image_projector)\.w1\.", r"\1.gate_proj."), (r"(\.image_projector)\.w2\.", r"\1.down_proj."),
        (r"(\.image_projector)\.w3\.", r"\1.up_proj."),
    ),
    "nemotron_h": ((r"^backbone\.", "model."),),
    "nemotron_h_omni": (
        (r"^language_model\.backbone\.", "language_model.model."), (r"^mlp1\.0\.", "multi_modal_projector.layer_norm."),
        (r"^mlp1\.1\.", "multi_modal_projector.linear_1."), (r"^mlp1\.3\.", "multi_modal_projector.linear_2."),
    ),
    "olmo_hybrid": (
        *STACKED, (r"\.attention_layer_norm\.", ".input_layernorm."),
        (r"\.feedforward_layer_norm\.", ".post_attention_layernorm."),
    ),
    "paddleocr_vl": (*TEXT, (r"^mlp_AR\.", "model.projector.")),
    "phimoe": (*MIXTRAL, (r"\.gate\.weight$", ".router.weight")),
    "qwen2_5_omni": TEXT,
    "qwen2_5_vl": TEXT,
    "qwen2_vl": TEXT,
    "qwen3_omni_moe": TEXT,
    "step3p7": (
        *TEXT, (r"\.moe\.(up|gate|down)_proj\.weight$", r".mlp.experts.\1_proj"), (r"\.moe\.", ".mlp."),
        (r"\.share_expert\.", ".mlp.shared_experts."), (r"^vit_large_projector\.", "model.multi_modal_projector."),
    ),
}  # fmt: skip


def as_loaded(tensors: Tensors, model_type: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the weights of a model in memory, of those in its files; no buffers."""
    rules = [(re.compile(pattern), other) for pattern, other in (*ANY, *BY_TYPE.get(model_type, ()))]
    found = {}
    for name, shape in _stacked(tensors, model_type).items():
        for pattern, other in rules:
            name = pattern.sub(other, name)
        if learnable(name):  # what several become is as tall as all of them
            found[name] = (shape[0] + found[name][0], *shape[1:]) if name in found else shape
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
