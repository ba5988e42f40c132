"""New blocks between those of a model: nothing changes at first, they alone learn, a plain model is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from core import config
from core.errors import InputError
from core.models.blocks import blocks, expand
from core.models.inspect import of_text
from core.models.longer import FIRST, NEVER
from core.models.shapes import WHOLE_TYPE, Shapes
from core.tuners.expand import Expand
from tests.core import tiny
from tests.core.helpers import train, weights
from tests.core.test_memory import shapes_of


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen3_next", "falcon", "olmo2", "gpt_neo"])
def test_new_blocks_change_nothing_until_they_learn(model_type: str, tmp_path: Path) -> None:
    model, batch = tiny.tiny_model(model_type), tiny.tiny_batch()
    for parameter in model.parameters():  # biases and norms, too
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    before, kinds = logits(model, batch), model.config.to_dict().get("layer_types")
    tuned: Any = Expand(blocks=2).attach(model, tmp_path)
    assert torch.equal(logits(tuned, batch), before)
    name, stack = blocks(tuned)
    assert len(stack) == tuned.config.num_hidden_layers == 4
    if kinds:
        assert tuned.config.layer_types == [kinds[0], kinds[0], kinds[1], kinds[1]]
    started = {key: value.detach().clone() for key, value in tuned.named_parameters()}
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        tuned.train()(**batch).loss.backward()
        optimizer.step()
    moved = {key for key, value in tuned.named_parameters() if not torch.equal(value, started[key])}
    assert moved and all(key.startswith((f"{name}.1.", f"{name}.3.")) for key in moved)
    assert {key.split(".")[len(name.split("."))] for key in moved} == {"1", "3"}

    tuned.save_pretrained(tmp_path / "model")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.allclose(logits(again, batch), logits(tuned, batch), atol=1e-6)
    assert not torch.allclose(logits(again, batch), before, atol=1e-4)
    ids = batch["input_ids"][:1, :4]
    written = [each.generate(ids, max_new_tokens=5, do_sample=False) for each in (tuned, again)]  # with a cache
    assert torch.equal(*written)


@pytest.mark.parametrize(("count", "copied"), [(1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])])
def test_new_blocks_are_spread_evenly(count: int, copied: list[int]) -> None:
    shape = tiny.tiny_config("llama")
    shape.num_hidden_layers = 4
    model = AutoModelForCausalLM.from_config(shape)
    old = list(blocks(model)[1])
    names = expand(model, count)
    new = [place for place, block in enumerate(blocks(model)[1]) if block not in old]
    assert [old.index(blocks(model)[1][place - 1]) for place in new] == copied
    assert {int(name.split(".")[2]) for name in names} == set(new)
    assert [block.self_attn.layer_idx for block in blocks(model)[1]] == list(range(4 + count))


@pytest.mark.parametrize("model_type", ["deepseek_v3", "rwkv", "gemma3n_text", "recurrent_gemma"])
def test_types_whose_config_could_not_tell_are_refused(model_type: str) -> None:
    with pytest.raises(InputError) as caught:
        expand(tiny.tiny_model(model_type), 2)
    assert (caught.value.code, caught.value.place) == ("expand.unfit", "tuner")


def made(model_type: str, layers: int, **more: Any) -> Any:
    shape: Any = tiny.tiny_config(model_type)
    text = shape.get_text_config()
    if model_type not in NEVER:
        told = {"num_hidden_layers": layers, "layer_types": (text.to_dict().get("layer_types") or [])[:1] * layers}
        for key, value in (told | more).items():
            if value:
                setattr(text, key, value)
    auto = next(auto for auto, names in tiny.AUTO if model_type in names)
    return auto.from_config(shape)


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "llama": [{}], "gemma4": [{}, {"hidden_size_per_layer_input": 0}],
    **{kind: [{key: number} for number in (1, 2, 4)] for kind, key in FIRST.items()},
    "bamba": [{"attn_layer_indices": numbers} for numbers in ([1], [0, 3])],
    "jamba": [{"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
              {"attn_layer_period": 9, "attn_layer_offset": 1, "expert_layer_period": 9, "expert_layer_offset": 8}],
    "mllama": [{"cross_attention_layers": numbers} for numbers in ([0], [1, 3])],
    "zamba2": [{"layers_block_type": ["hybrid" if number in numbers else "linear_attention" for number in range(4)],
                "hybrid_layer_ids": numbers} for numbers in ([0], [2], [1, 3])],
    **{kind: [{}] for kind in NEVER},
}  # fmt: skip


@pytest.mark.parametrize("model_type", CONFIGS)
def test_files_tell_what_the_model_does(model_type: str, tmp_path: Path) -> None:
    for more in CONFIGS[model_type]:
        found = shapes_of(made(model_type, 4, **more), tmp_path / "files")
        shapes = Shapes(found.tensors, of_text(dict(found.config)) | {WHOLE_TYPE: model_type})
        for count in range(1, len(shapes.blocks) + 1):
            codes = []
            for ask in (
                lambda: expand(made(model_type, 4, **more), count),  # noqa: B023
                lambda: Expand(blocks=count).check(shapes),  # noqa: B023
            ):
                try:
                    ask()
                    codes.append("")
                except InputError as error:
                    codes.append(error.code)
                    assert error.place == "tuner"
            assert codes[0] == codes[1], (more, count)


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        expand(tiny.tiny_model("llama"), 3)
    assert (caught.value.code, caught.value.place) == ("expand.blocks", "tuner.expand.blocks")
    for settings in (["model.quantizer.kind=bnb_4bit"], ["model.add_tokens=[new]"]):
        with pytest.raises(InputError) as caught:
            config.resolve(config.override(["tuner.kind=expand", *settings]))
        assert caught.value.place == "tuner"


def test_run(make_run: Callable[..., Path], tiny_model: Path) -> None:
    run = make_run("run", "tuner.kind=expand", "tuner.blocks=1")
    train(run)
    saved, base = weights(run / "model"), weights(tiny_model)
    assert len(AutoModelForCausalLM.from_pretrained(run / "model").model.layers) == 3
    assert all(torch.equal(saved[name], base[name]) for name in base)
    assert any(saved[name].any() for name in saved.keys() - base.keys() if "down_proj" in name)
