"""LoftQ: an adapter that begins with what 4 bits have lost, above its 4-bit base and above the whole one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import config
from core.errors import InputError
from core.export.merge import export
from core.models.lineup import Lineup
from core.models.loading import load_model
from core.sections import Hardware, Model
from core.tuners.lora import Lora
from tests.conftest import copy_of
from tests.core import tiny
from tests.core.helpers import of_type, train, weights
from tests.core.models_fixtures import context
from tests.core.test_tuners import learn_a_little, logits

CPU = Hardware(device="cpu")
NF4 = {"kind": "bnb_4bit"}
FP4 = {"kind": "bnb_4bit", "type": "fp4", "double": False}


def loaded(folder: Path, quantizer: dict[str, Any] | None = NF4, **settings: Any) -> Any:
    spec = Model(path=str(folder), precision="fp32", quantizer=quantizer or {"kind": "none"}, **settings)  # type: ignore[arg-type]
    return load_model(spec, folder, CPU, training=True)


def layers(tuned: Any) -> dict[str, Any]:
    return {name.removeprefix("base_model.model."): module for name, module in tuned.named_modules()
            if isinstance(module, LoraLayer) and name.endswith("_proj")}  # fmt: skip


def added(layer: Any) -> torch.Tensor:
    """s·B·A of a layer."""
    return layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight


@pytest.mark.parametrize(("quantizer", "settings"), [
    (NF4, {}), (FP4, {"rslora": True, "alpha": 5}), (NF4, {"rank": 100}), (NF4, {"dora": True}),
])  # fmt: skip
@torch.no_grad()
def test_it_begins_with_the_best_product_for_what_was_lost(
    tiny_model: Path, tmp_path: Path, quantizer: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Eckart and Young: no product of the rank leaves less than the singular values behind it."""
    tuned: Any = Lora(**{"rank": 8, "loftq": True, **settings}).attach(loaded(tiny_model, quantizer), tmp_path)
    whole = load_file(tiny_model / "model.safetensors")
    rank, found = settings.get("rank", 8), layers(tuned)
    assert len(found) == 14
    for name, layer in found.items():
        lost_O_I = whole[f"{name}.weight"] - dequantize_module_weight(layer.get_base_layer())
        assert lost_O_I.norm() > 0
        left = (lost_O_I - added(layer)).norm()
        best = torch.linalg.svdvals(lost_O_I)[rank:].norm()
        assert best - 1e-5 <= left <= 1.005 * best + 1e-5, name
        x_B_I = torch.randn(64, lost_O_I.shape[1])
        wanted = x_B_I @ whole[f"{name}.weight"].T
        with_zeros = (layer.get_base_layer()(x_B_I) - wanted).norm()
        assert (layer(x_B_I) - wanted).norm() < (0.01 if rank == 100 else 0.95) * with_zeros, name
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_model))
    with tuned.disable_adapter():
        packed = logits(tuned)
    assert (logits(tuned) - base).norm() < 0.9 * (packed - base).norm()


@pytest.mark.parametrize("settings", [
    {}, {"rslora": True}, {"dora": True}, {"targets": ["q_proj", "lm_head"], "extra": ["norm"]},
])  # fmt: skip
def test_saved_it_fits_its_own_base_and_the_whole_one(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    tuner = Lora(rank=8, alpha=12, loftq=True, **settings)
    tuned: Any = tuner.attach(loaded(tiny_model), tmp_path)
    begun = {name: added(layer).detach() for name, layer in layers(tuned).items()}
    start = logits(tuned)
    learn_a_little(tuned)
    trained = logits(tuned)
    assert (trained - start).abs().max() > 0.05
    learned = {name: added(layers(tuned)[name]).detach() - product for name, product in begun.items()}
    adapter = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), tmp_path)

    workspace = tmp_path.parent
    for quantizer, same in ((NF4, True), ({"kind": "none"}, False), (FP4, False), ({"kind": "bnb_8bit"}, False)):
        spec = Model(path=str(tiny_model), precision="fp32", quantizer=quantizer)  # type: ignore[arg-type]
        lineup = Lineup(spec, [str(adapter)], workspace, CPU)
        with lineup.use(str(adapter)) as model:
            assert torch.allclose(logits(model), trained, atol=1e-5) is same, quantizer

    plain: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)  # as others do
    assert plain.peft_config["default"].r == 16
    with context(workspace, tmp_path.name + " export") as at:
        made = export(config.resolve({"model": {"path": str(tiny_model)}, "source": str(adapter)}, job="export"), at)  # type: ignore[arg-type]
    merged = AutoModelForCausalLM.from_pretrained(made["folder"])
    assert torch.allclose(logits(merged), logits(plain), atol=1e-4)
    if not settings.get("dora"):
        stored, written = weights(tiny_model), dict(merged.named_parameters())
        for name, product in learned.items():  # what was learned and nothing of what was made up for
            moved = written[f"{name}.weight"] - stored[f"{name}.weight"]
            assert torch.allclose(moved, product, atol=1e-5) and not torch.allclose(
                moved, product + begun[name], atol=1e-4
            )


@pytest.mark.parametrize(("quantizer", "rank"), [(NF4, 8), ({"kind": "none"}, 16)])
def test_it_is_trained_on_where_it_ended(
    tiny_model: Path, workspace: Path, quantizer: dict[str, Any], rank: int
) -> None:
    tokenizer, runs = AutoTokenizer.from_pretrained(tiny_model), workspace / "runs"
    first, second = Lora(rank=8, loftq=True, rslora=True), Lora(start=["first"], go_on=True)
    tuned: Any = first.attach(loaded(tiny_model), runs / "first")
    learn_a_little(tuned)
    ended = logits(tuned)
    first.save(tuned, tokenizer, runs / "first")
    on: Any = second.attach(loaded(tiny_model, quantizer), runs / "second")
    assert on.peft_config["default"].r == rank
    assert torch.allclose(logits(on), ended, atol=1e-5) is (quantizer == NF4)
    learn_a_little(on)
    second.save(on, tokenizer, runs / "second")
    spec = Model(path=str(tiny_model), precision="fp32", quantizer=quantizer)  # type: ignore[arg-type]
    with Lineup(spec, ["second"], workspace, CPU).use("second") as model:
        assert torch.allclose(logits(model), logits(on), atol=1e-5)
    untouched = load_file(runs / "second" / "adapter" / "adapter_model.safetensors")
    if quantizer == NF4:  # what is taken back is what was put in at the very beginning
        begun = load_file(runs / "first" / "beginning" / "adapter_model.safetensors")
        for name, tensor in begun.items():
            kept = untouched[name][:, 8:] if "lora_B" in name else untouched[name][8:]
            assert torch.equal(kept, -tensor if "lora_B" in name else tensor)


def test_untrained_it_changes_nothing_of_the_whole_model(tiny_model: Path, tmp_path: Path) -> None:
    tuner = Lora(rank=8, loftq=True)
    adapter = tuner.save(
        tuner.attach(loaded(tiny_model), tmp_path), AutoTokenizer.from_pretrained(tiny_model), tmp_path
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    wanted = logits(base)
    assert torch.allclose(logits(PeftModel.from_pretrained(base, adapter)), wanted, atol=1e-5)


def test_a_run_learns_and_answers_above_four_bits(make_run: Callable[..., Path]) -> None:
    losses = {}
    for name in ("plain", "loftq"):
        folder = make_run(name, "model.quantizer.kind=bnb_4bit", "tuner.rank=8", f"tuner.loftq={name == 'loftq'}")
        train(folder)
        losses[name] = [event["loss"] for event in of_type(folder, "step")]
    assert losses["loftq"][0] != losses["plain"][0] and losses["loftq"][-1] < 0.95 * losses["loftq"][0]


def test_weights_are_found_under_the_names_of_their_files(tiny_model: Path, tmp_path: Path) -> None:
    """Without the prefix of the base model, renamed (a model that sees), crosswise (gpt2), in several files."""
    bare = copy_of(tiny_model, tmp_path / "bare")
    stored = load_file(bare / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in stored.items()}, bare / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    folders = [bare]
    for kind in ("gpt2", "llava"):
        made: Any = tiny.tiny_model(kind)
        folders.append(tmp_path / kind)
        made.save_pretrained(folders[-1], max_shard_size="100KB")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folders[-1] / file).write_bytes((tiny_model / file).read_bytes())
    assert "model.language_model.layers.0.mlp.up_proj.weight" not in weights(folders[-1])
    for number, folder in enumerate(folders):
        whole = loaded(folder, None)
        tuned: Any = Lora(rank=16, loftq=True).attach(loaded(folder), tmp_path / f"run{number}")
        found = 0
        for name, module in tuned.named_modules():
            if isinstance(module, LoraLayer):
                weight = whole.get_parameter(name.removeprefix("base_model.model.") + ".weight").detach()
                weight = weight.T if folder.name == "gpt2" else weight
                lost = weight - dequantize_module_weight(module.get_base_layer())
                assert (lost - added(module)).norm() < 0.9 * lost.norm(), name
                found += 1
        assert found >= 8


REFUSED = {
    "whole": (["tuner.loftq=true"], "quantizer.loftq"),
    "8 bit": (["tuner.loftq=true", "model.quantizer=bnb_8bit"], "quantizer.loftq"),
    "hqq": (["tuner.loftq=true", "model.quantizer=hqq"], "quantizer.loftq"),
    "eva": (["tuner.loftq=true", "tuner.eva=true", "model.quantizer=bnb_4bit"], "lora.beginnings"),
    "on": (["tuner.loftq=true", "tuner.go_on=true", "tuner.start=[a]", "model.quantizer=bnb_4bit"], "lora.beginnings"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_start(name: str) -> None:
    settings, code = REFUSED[name]
    with pytest.raises(InputError) as caught:
        config.resolve(config.override(settings))
    assert (caught.value.place, caught.value.code) == ("tuner.lora.loftq", code)


def test_refused_where_nothing_tells_what_was_lost(tiny_model: Path, tmp_path: Path) -> None:
    packed = copy_of(tiny_model, tmp_path / "packed")
    loaded(tiny_model).save_pretrained(packed)
    for model, code in ((loaded(packed, None), "loftq.weights"), (loaded(tiny_model, None), "quantizer.loftq")):
        with pytest.raises(InputError) as caught:
            Lora(rank=4, loftq=True).attach(model, tmp_path)
        assert (caught.value.place, caught.value.code) == ("tuner.lora.loftq", code)
    with pytest.raises(InputError) as caught:
        Lora(rank=4, loftq=True, targets=["embed_tokens", "q_proj"]).attach(loaded(tiny_model), tmp_path)
    assert caught.value.code == "lora.table"


def test_an_odd_note_beside_an_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    tuner = Lora(rank=4, loftq=True)
    adapter = tuner.save(
        tuner.attach(loaded(tiny_model), tmp_path), AutoTokenizer.from_pretrained(tiny_model), tmp_path
    )
    told = json.loads((adapter / "adapter_config.json").read_text()) | {"r": 7}
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    spec = Model(path=str(tiny_model), quantizer=NF4)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        Lineup(spec, [str(adapter)], tmp_path, CPU)
    assert (caught.value.place, caught.value.code) == ("tuned", "adapter.shapes")
    (adapter / "loftq.json").write_text("[")
    with pytest.raises(InputError) as caught:
        Lineup(spec, [str(adapter)], tmp_path, CPU)
    assert (caught.value.place, caught.value.code) == ("tuned", "model.bad_json")
