"""What the planner counts as learning, from the files alone, is what learns: of types that are unlike others."""

from __future__ import annotations

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
])  # fmt: skip
def test_as_many_learn_as_planned(model_type: str, tuner: list[str], tmp_path: Path) -> None:
    model = tiny.tiny_model(model_type)
    model.save_pretrained(tmp_path / "model")
    words = [f"tuner.{word}" for word in tuner]
    run = config.run(config.override([f"model.path={tmp_path / 'model'}", "data.train=[rows]", *words]))
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
