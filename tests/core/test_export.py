"""Exports of real tiny models: what is written answers as the adapter did; nothing half done is left."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from core import judges
from core.config import dump, resolve
from core.errors import InputError, Stopped
from core.export import merge
from core.export.merge import export
from core.models import value_head
from core.models.inspect import inspect
from core.models.loading import load_model
from core.sections import Hardware, Model
from core.workspace import tuned
from tests.core.models_fixtures import ASK, context, make_adapter, make_model, make_tokenizer, told
from tests.core.tiny import tiny_model

CPU = Hardware(device="cpu")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    base = make_model(room / "base")
    make_adapter(room / "runs" / "tuned" / "adapter", base)
    settings = resolve({"name": "tuned", "data": {"train": ["pets|x"]}})
    (room / "runs" / "tuned" / "run.yaml").write_text(dump(settings))
    make_adapter(room / "dora", base, use_dora=True, seed=2)
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    shutil.copytree(base, room / "half")
    half.save_pretrained(room / "half")
    make_model(room / "whole", seed=4)
    return room


def job(source, **given):
    return resolve({"model": {"path": "base"}, "source": source, "hardware": {"device": "cpu"}, **given}, job="export")


def logits(model):
    ids = torch.arange(60).view(2, 30)
    with torch.inference_mode():
        return model.eval()(ids).logits


@pytest.mark.parametrize("source,adapter", [("tuned", "runs/tuned/adapter"), ("dora", "dora")])
def test_merged_logits_are_those_of_the_adapter(room, source, adapter):
    with context(room, f"export {source}") as at:
        metrics = export(job(source), at)
        assert [event["phase"] for event in told(at, "phase")] == ["load_model", "merge", "write", "check"]
        assert told(at, "saved")[0]["path"] == metrics["folder"] == str(at.folder / "model")
    wanted = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(room / "base"), room / adapter))
    merged = AutoModelForCausalLM.from_pretrained(metrics["folder"])
    assert torch.allclose(logits(merged), wanted, atol=1e-4)
    assert metrics["difference"] <= 1e-4 and metrics["rounding"] <= 1e-4
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (room / "base", metrics["folder"])]
    assert len({tokenizer.apply_chat_template(ASK, tokenize=False) for tokenizer in tokenizers}) == 1
    facts = inspect(at.folder / "model")
    assert facts.parameters == metrics["parameters"] == inspect(room / "base").parameters
    assert merged.config.tie_word_embeddings and (at.folder / "model" / "generation_config.json").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_of_a_packed_base_is_merged_into_what_that_computes_with(room, tmp_path, bits):
    kind, packed = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8), tmp_path / "packed"
    shutil.copytree(room / "base", packed)
    AutoModelForCausalLM.from_pretrained(room / "base", quantization_config=kind).save_pretrained(packed)
    with context(room, f"export {bits}") as at:
        whole = export(job("tuned", model={"path": str(packed)}), at)["folder"]
    assert not inspect(Path(whole)).packed
    base = load_model(Model(path=str(packed), precision="fp32"), room, CPU).dequantize(torch.float32)
    wanted = logits(PeftModel.from_pretrained(base, room / "runs" / "tuned" / "adapter"))
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(whole)), wanted, atol=1e-4)


def test_nothing_is_merged_into_what_cannot_be_unpacked(room, tmp_path):
    packed = shutil.copytree(room / "base", tmp_path / "packed")
    told = json.loads((packed / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (packed / "config.json").write_text(json.dumps(told))
    weights = load_file(packed / "model.safetensors") | {"packed": torch.zeros(1, dtype=torch.int32)}
    save_file(weights, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError) as raised, context(room, "export gptq") as at:
        export(job("tuned", model={"path": str(packed)}), at)
    assert (raised.value.code, raised.value.place) == ("export.packed", "model.path")


def test_card_tells_where_it_comes_from(room):
    with context(room, "card") as at:
        folder = at.folder / "model"
        export(job("tuned"), at)
    card = (folder / "README.md").read_text()
    for part in ("base_model: base", "pets\\|x", "| Method | lora |", "torch 2", "largest difference"):
        assert part in card


def test_stored_format_is_kept_and_can_be_chosen(room):
    make_adapter(room / "half adapter", room / "half")
    with context(room, "half") as at:
        metrics = export(job("half adapter", model={"path": "half"}), at)
        assert inspect(at.folder / "model").dtype == "BF16"
        assert metrics["difference"] <= 1e-4 < metrics["rounding"]
    with context(room, "chosen") as at:
        export(job("tuned", model={"path": "base", "precision": "fp16"}), at)
        assert inspect(at.folder / "model").dtype == "F16"


def test_whole_model_is_copied_in_shards(room, tmp_path):
    with context(room, "copied") as at:
        metrics = export(job("whole", folder=str(tmp_path / "out" / "copy"), shard_gb=2e-5), at)
    assert len(list((tmp_path / "out" / "copy").glob("*.safetensors"))) > 1
    copy, whole = (AutoModelForCausalLM.from_pretrained(f) for f in (tmp_path / "out" / "copy", room / "whole"))
    assert torch.equal(logits(copy), logits(whole)) and metrics["difference"] == 0


def rewards(model, head):
    with value_head.reading(model, head, alone=True), torch.inference_mode():
        return model.eval()(torch.arange(60).view(2, 30))["value"]


@pytest.mark.parametrize("judge", ["adapter", "whole model"])
def test_an_exported_reward_model_gives_the_numbers_that_it_gave(room, judge):
    folder = room / f"judge {judge}"
    if judge == "adapter":
        make_adapter(folder, room / "base", seed=5)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(room / "base"), folder)
    else:
        make_model(folder, seed=5)
        model = AutoModelForCausalLM.from_pretrained(folder)
    head = value_head.ValueHead(value_head.width(model))
    value_head.save(head, folder)
    with context(room, f"exported-{judge[:5]}") as at:
        export(job(folder.name), at)
    out = tuned(at.folder.name, room)
    judges.check(at.folder.name, out, resolve({"data": {"train": ["pets"]}}), room / "base", "stage.ppo.reward.judge")
    again = load_model(Model(path=str(out), precision="fp32"), room, CPU)
    assert torch.allclose(rewards(again, value_head.load(again, out)), rewards(model, head), atol=1e-4)


def test_a_value_head_that_is_no_safetensors_is_told_before_anything_is_written(room, tmp_path):
    folder = make_adapter(room / "odd judge", room / "base")
    (folder / "value_head.bin").write_bytes(b"pickle")
    with context(room, "odd-out") as at, pytest.raises(InputError) as caught:
        export(job(folder.name, folder=str(tmp_path / "out")), at)
    assert (caught.value.code, caught.value.place) == ("value_head.unsafe", "source")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_export_is_refused_and_leaves_nothing(room, tmp_path, monkeypatch):
    write = merge._write

    def spoiled(*given):
        write(*given)
        file = given[3] / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"] *= 1.1
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(merge, "_write", spoiled)
    with context(room, "wrong") as at, pytest.raises(InputError) as caught:
        export(job("tuned", folder=str(tmp_path / "out")), at)
    assert caught.value.code == "export.differs" and list(tmp_path.iterdir()) == []


def test_interrupted_export_leaves_nothing_and_can_be_done_again(room, tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / "model.safetensors").write_bytes(b"half")
    with context(room, "stopped") as at:
        at.stop.set()
        with pytest.raises(Stopped):
            export(job("tuned", folder=str(out)), at)
        assert list(tmp_path.iterdir()) == []
        at.stop.clear()
        out.mkdir()  # empty is as good as absent
        export(job("tuned", folder=str(out)), at)
    assert inspect(out) and [path.name for path in tmp_path.iterdir()] == ["out"]


def full_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(merge.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))


def taken(monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")


def a_file(monkeypatch, tmp_path):
    (tmp_path / "out").write_text("mine")


def nothing(monkeypatch, tmp_path):
    pass


@pytest.mark.parametrize("source,prepare,code,place", [
    ("tuned", full_disk, "disk.full", "folder"),
    ("tuned", taken, "path.not_empty", "folder"),
    ("tuned", a_file, "path.not_empty", "folder"),
    ("", nothing, "config.missing", "source"),
    ("nobody", nothing, "path.missing", "source"),
    ("data", nothing, "adapter.no_config", "source"),
])  # fmt: skip
def test_refused(room, tmp_path, monkeypatch, source, prepare, code, place):
    (room / "data").mkdir(exist_ok=True)
    prepare(monkeypatch, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with context(room, "refused") as at, pytest.raises(InputError) as caught:
        export(job(source, folder=str(tmp_path / "out")), at)
    assert (caught.value.code, caught.value.place) == (code, place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
def test_room_is_asked_for_as_much_as_is_written(tmp_path, monkeypatch, targets):
    """What layers share is written once, or for each where an adapter at the head has them parted."""
    model = tiny_model("zamba")
    model.resize_token_embeddings(264)
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    make_adapter(tmp_path / "runs" / "tuned" / "adapter", tmp_path / "base", target_modules=targets)
    if "lm_head" not in targets:  # files that hold it for each, as other tools write them
        for_each = {name: weight.clone() for name, weight in model.state_dict().items()}
        save_file(for_each, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with context(tmp_path, "measured") as at:
        written = 4 * export(job("tuned"), at)["parameters"]
    held = sum(weight.nbytes for weight in load_file(at.folder / "model" / "model.safetensors").values())
    assert held == written and (written > 4 * model.num_parameters()) == ("lm_head" in targets)
    free = [merge.SPARE_BYTES + written - 1]
    monkeypatch.setattr(merge.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free[0], 0, free[0]))
    with context(tmp_path, "too little") as at, pytest.raises(InputError) as caught:
        export(job("tuned"), at)
    assert caught.value.code == "disk.full" and [path.name for path in at.folder.glob("*model*")] == []
    free[0] += 1
    with context(tmp_path, "enough") as at:
        export(job("tuned"), at)


@pytest.mark.parametrize("settings", [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_adapters_of_tied_embeddings(room, tmp_path, settings):
    adapter = make_adapter(tmp_path / "adapter", room / "base", seed=3, **settings)
    with context(room, "tied") as at:
        metrics = export(job(str(adapter), folder=str(tmp_path / "out")), at)
    wanted = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(room / "base"), adapter))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(merged), wanted, atol=1e-4) and not merged.config.tie_word_embeddings
    assert metrics["difference"] <= 1e-4


@pytest.mark.parametrize(("kind", "settings"), [
    ("phi", {"target_modules": ["q_proj", "lm_head"]}), ("gptj", {"target_modules": ["q_proj", "lm_head"]}),
    ("zamba", {"target_modules": ["q_proj", "lm_head"]}), ("zamba", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("zamba", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
])  # fmt: skip
def test_adapters_of_heads_with_biases_and_of_layers_that_share(kind, settings, tmp_path):
    tiny_model(kind).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    make_adapter(tmp_path / "adapter", tmp_path / "base", **settings)
    model = load_model(Model(path=str(tmp_path / "base"), precision="fp32"), tmp_path, CPU)
    merged, before = merge._merge(model, tmp_path / "adapter", torch.arange(60).view(2, 30))
    assert torch.allclose(logits(merged), before, atol=1e-4)
    merged.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    again = load_model(Model(path=str(tmp_path / "out"), precision="fp32"), tmp_path, CPU)
    assert torch.allclose(logits(again), before, atol=1e-4)


def test_configs_that_do_not_tell_of_tied_embeddings(tmp_path):
    model = tiny_model("qwen2_audio")
    assert "tie_word_embeddings" not in model.config.to_dict()
    settings = LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path)
    merged, before = merge._merge(tiny_model("qwen2_audio"), tmp_path, torch.arange(60).view(2, 30))
    assert torch.allclose(logits(merged), before, atol=1e-4)


def test_biases_that_the_model_has_no_place_for_are_told(room):
    make_adapter(room / "biased", room / "base", lora_bias=True)
    with context(room, "biased-out") as at, pytest.raises(InputError) as caught:
        export(job("biased"), at)
    assert (caught.value.code, caught.value.place) == ("export.bias", "source")
