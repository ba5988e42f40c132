"""What the planner counts as learning, from the files alone, is what learns: of types that are unlike others."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import config
from core.errors import InputError
from core.forecast import forecast
from core.models.blocks import blocks
from core.models.inspect import describe
from core.models.linear import linear
from core.models.memory import plan
from core.models.renamed import as_loaded
from core.models.shapes import WHOLE_TYPE, Shapes
from core.models.targets import targeted
from core.tuners.freeze import Freeze
from core.tuners.lora import Lora
from tests.core import tiny


@pytest.mark.parametrize(("model_type", "tuner"), [
    ("dots1", ["kind=expand", "blocks=1"]),  # with buffers among the weights of a block
    ("gemma4", ["kind=full"]),
    ("gemma4", ["kind=lora"]),  # a layer of the text part outside of its blocks
    ("kimi_k25", ["kind=lora"]),  # whose text part alone is of a type that peft takes for one of experts
    ("jetmoe", ["kind=lora", "experts=true"]),  # two kinds of experts in a block
    ("laguna", ["kind=full"]),
    ("video_llava", ["kind=freeze", "layers=-1"]),  # whose eyes have blocks of other names than most
    ("granite_speech", ["kind=freeze", "layers=1"]),
    ("gpt_neox", ["kind=lora", "extra=[lm_head]"]),  # whose files name the head otherwise
    ("gpt_neox", ["kind=lora", "targets=[lm_head]"]),
    ("rwkv", ["kind=lora", "targets=[embeddings]"]),
    ("mllama", ["kind=lora", "targets=[lm_head,embed_tokens]"]),  # one has more rows than the other
    ("llava", ["kind=lora", "extra=[model.language_model.embed_tokens]"]),  # tables with another path in the files
    ("qwen2_vl", ["kind=lora", "extra=[model.language_model.embed_tokens]"]),
    ("qwen2_vl", ["kind=freeze", "extra=[model.language_model.embed_tokens]"]),
    ("nemotron_h", ["kind=lora", "targets=[model.embeddings]"]),
    ("janus", ["kind=lora", "targets=[embed_tokens]"]),  # with a taller table of something else
    ("molmo2", ["kind=lora"]),  # files that divide matrices otherwise
    ("molmo2", ["kind=lora", "targets=[q_proj,embed_tokens]"]),
    ("deepseek_v4", ["kind=full"]),
    ("deepseek_v4", ["kind=lora", "extra=[lm_head]"]),
    ("deepseek_v4", ["kind=lora", "experts=true"]),
    ("hy_v3", ["kind=full"]),
    ("step3p7", ["kind=full"]),
    ("step3p7", ["kind=lora", "experts=true"]),
    ("ernie4_5_vl_moe", ["kind=lora", "experts=true"]),
    ("ernie4_5_vl_moe", ["kind=lora", "extra=[mlp,resampler_model.spatial_linear.fc1]"]),
    ("granitemoe", ["kind=lora", "extra=[experts]"]),  # files that name modules otherwise
    ("granitemoe", ["kind=lora", "extra=[router]"]),
    ("granitemoehybrid", ["kind=lora", "extra=[experts]"]),
    ("kimi_linear", ["kind=lora", "extra=[mlp,conv1d]"]),
    ("laguna", ["kind=lora", "extra=[shared_experts]"]),
    ("minimax", ["kind=lora", "extra=[mlp]"]),
    ("minimax_m2", ["kind=freeze", "layers=0", "extra=[mlp]"]),
    ("mixtral", ["kind=lora", "extra=[mlp]"]),
    ("molmo2", ["kind=lora", "extra=[multi_modal_projector]"]),
    ("nemotron_h_omni", ["kind=lora", "extra=[multi_modal_projector]"]),
    ("olmo_hybrid", ["kind=lora", "extra=[post_attention_layernorm,conv1d]"]),
    ("phimoe", ["kind=lora", "extra=[mlp]"]),
    ("phimoe", ["kind=lora", "extra=[router]"]),
])  # fmt: skip
def test_as_many_learn_as_planned(model_type: str, tuner: list[str], tmp_path: Path) -> None:
    model = tiny.tiny_model(model_type)
    model.save_pretrained(tmp_path / "model")
    words = [f"tuner.{word}" for word in tuner]
    run = config.run(config.override([f"model.path={tmp_path / 'model'}", "data.train=[rows]", *words]))
    found = forecast(run, tmp_path)
    tuned: Any = run.tuner.attach(model, tmp_path)
    assert found and found.plan.trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def test_as_many_experts_as_there_may_be_are_planned_at_once(tmp_path: Path) -> None:
    layers, experts, shape = 61, 256, (8, 64)
    names = [f"model.layers.{layer}.mlp.experts.{expert}.{kind}.weight" for layer in range(layers)
             for expert in range(experts) for kind in ("gate_proj", "up_proj", "down_proj")]  # fmt: skip
    apart = {name: shape[::-1] if "down" in name else shape for name in names} | {"model.embed_tokens.weight": (99, 64)}
    begun = time.process_time()
    stacked = as_loaded(apart, "deepseek_v3")
    assert stacked["model.layers.60.mlp.experts.down_proj"] == (experts, 64, 8)
    assert len(stacked) == 3 * layers + 1 and sum(map(math.prod, stacked.values())) == 512 * len(names) + 99 * 64
    run = config.run(config.override(["data.train=[rows]", "tuner.experts=true"]))
    assert plan(run, Shapes(stacked, {}), "cpu").trainable == layers * experts * 16 * (2 * (64 + 8) + 8)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("tuner", [["extra=[transformer.wte]"], [r"targets=['transformer\.h\.0\..*c_attn']"]])
def test_gpt_2_by_the_names_of_its_first_files(tuner: list[str], tmp_path: Path) -> None:
    model = tiny.tiny_model("gpt2")
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file({name.removeprefix("transformer."): weight for name, weight in load_file(file).items()}, file)
    words = [f"model.path={tmp_path / 'model'}", "data.train=[rows]", *(f"tuner.{word}" for word in tuner)]
    run = config.run(config.override(words))
    found = forecast(run, tmp_path)
    tuned: Any = run.tuner.attach(model, tmp_path)
    assert found and found.plan.trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


@pytest.mark.parametrize("model_type", ["video_llava", "granite_speech", "idefics2", "chameleon", "janus"])
@pytest.mark.parametrize("layers", [1, -1])
def test_layers_that_freeze_leaves_are_of_the_text_part(model_type: str, layers: int, tmp_path: Path) -> None:
    model = tiny.tiny_model(model_type)
    tuned = Freeze(layers=layers).attach(model, tmp_path)
    learning = [name for name, p in tuned.named_parameters() if p.requires_grad]
    number = 0 if layers < 0 else len(blocks(model)[1]) - 1
    assert learning and all(name.startswith(f"{blocks(model)[0]}.{number}.") for name in learning)


@pytest.mark.parametrize("model_type", ["deepseek_v32", "glm_moe_dsa", "glm5_next", "deepseek_v4"])
def test_what_chooses_tokens_to_look_at_gets_no_adapter(model_type: str) -> None:
    model = tiny.tiny_model(model_type)
    assert any(".indexer." in name for name, _ in model.named_modules())
    assert not any(".indexer." in name for name in linear(model))
    shapes = Shapes({name: tuple(weight.shape) for name, weight in model.named_parameters()}, model.config.to_dict())
    assert not any(".indexer." in one.name for one in targeted(shapes, ["all-linear"]))


def test_no_part_that_hears_is_the_table_of_tokens() -> None:
    shapes = Shapes({"model.embed_tokens.weight": (320, 64), "model.audio_embed.bias_values.weight": (1000, 4)}, {})
    assert shapes.table == "model.embed_tokens.weight"


@pytest.mark.parametrize(("model_type", "buffers"), [
    ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 1024, 1024)}),
    ("gpt_neox", {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 1024, 1024, dtype=torch.bool),
                  "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
                  "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(8)}),
])  # fmt: skip
def test_what_old_files_hold_beside_weights_is_not_counted(
    model_type: str, buffers: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model = tiny.tiny_model(model_type)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | buffers, file, metadata={"format": "pt"})
    facts = describe(tmp_path)
    assert (facts.parameters, facts.dtype) == (model.num_parameters(), "F32")
    run = config.run(config.override([f"model.path={tmp_path}", "data.train=[rows]", "tuner.kind=full"]))
    found = forecast(run, tmp_path)
    assert found and found.plan.trainable == model.num_parameters()


def test_a_refusal_names_the_type_of_the_whole_model() -> None:
    shapes = Shapes({"model.layers.0.q_proj.weight": (4, 4)}, {"model_type": "qwen2_vl_text", WHOLE_TYPE: "qwen2_vl"})
    with pytest.raises(InputError) as caught:
        Lora(experts=True).check(shapes)
    assert (caught.value.code, caught.value.params) == ("lora.no_experts", {"model": "qwen2_vl"})
