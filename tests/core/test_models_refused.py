"""Broken model and adapter folders: each is refused with its own message, most without loading a weight."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import InputError
from core.models.adapters import load_adapter
from core.models.inspect import inspect, inspect_adapter
from core.models.lineup import Lineup
from core.models.loading import load, load_model
from core.sections import Hardware, Model
from tests.core.models_fixtures import make_adapter, make_model

CPU = Hardware(device="cpu")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    room = tmp_path_factory.mktemp("good")
    base = make_model(room / "base")
    make_model(room / "wide", hidden=64)
    make_adapter(room / "adapter", base)
    return room


def edit(path, **changes):
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def drop(folder, *names):
    for name in names:
        (folder / name).unlink()


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def index(folder, shard):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"model.norm.weight": shard, "lm_head.weight": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def only_pickle(folder):
    torch.save({}, folder / "pytorch_model.bin")
    drop(folder, "model.safetensors")


WEIGHTS = "model.safetensors"
HUGE = struct.pack("<Q", 1 << 60) + b"{}"
COLD = {
    "no folder content": (lambda f: [p.unlink() for p in f.iterdir()], "model.no_config"),
    "no config": (lambda f: drop(f, "config.json"), "model.no_config"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "model.bad_json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "model.bad_json"),
    "config nested without end": (lambda f: (f / "config.json").write_text("[" * 200_000), "model.bad_json"),
    "config is not utf-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "model.bad_json"),
    "no model_type": (lambda f: edit(f / "config.json", model_type=None), "model.no_type"),
    "no weights": (lambda f: drop(f, WEIGHTS), "model.no_weights"),
    "only pickle": (only_pickle, "model.unsafe"),
    "truncated data": (lambda f: truncate(f / WEIGHTS, -100), "model.bad_weights"),
    "truncated header": (lambda f: truncate(f / WEIGHTS, 40), "model.bad_weights"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "model.bad_weights"),
    "huge header": (lambda f: (f / WEIGHTS).write_bytes(HUGE), "model.bad_weights"),
    "garbage header": (lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 4) + b"\xff{]x"), "model.bad_weights"),
    "no tensors": (lambda f: save_file({}, f / WEIGHTS), "model.bad_weights"),
    "LFS pointer": (lambda f: (f / WEIGHTS).write_bytes(LFS), "model.lfs_pointer"),
    "config LFS pointer": (lambda f: (f / "config.json").write_bytes(LFS), "model.lfs_pointer"),
    "missing shard": (lambda f: index(f, "model-00002-of-00002.safetensors"), "model.shard_missing"),
    "traversal": (lambda f: index(f, "../../secret.safetensors"), "model.shard_outside"),
    "absolute shard": (lambda f: index(f, "/etc/passwd"), "model.shard_outside"),
    "pickle shard": (lambda f: index(f, "model.bin"), "model.shard_outside"),
    "named weights": (lambda f: edit(f / "config.json", transformers_weights="../x.safetensors"),
                      "model.shard_outside"),
    "auto_map": (lambda f: edit(f / "config.json", auto_map={"AutoConfig": "evil.C"}), "model.remote_code"),
    "tokenizer auto_map": (lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["e.T", None]}),
                           "model.remote_code"),
    "hub kernel": (lambda f: edit(f / "config.json", _attn_implementation="evil/kernel"), "model.remote_kernel"),
    "nested hub kernel": (lambda f: edit(f / "config.json", text_config={"attn_implementation": "evil/kernel"}),
                          "model.remote_kernel"),
    "no tokenizer": (lambda f: drop(f, "tokenizer.json"), "model.no_tokenizer"),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "model.is_adapter"),
}  # fmt: skip
WARM = {
    "unknown type": (lambda f: edit(f / "config.json", model_type="nonesuch"), "model.unusable"),
    "no language model": (lambda f: edit(f / "config.json", model_type="clip"), "model.unusable"),
    "nonsense size": (lambda f: edit(f / "config.json", hidden_size="large"), "model.unusable"),
    "no heads": (lambda f: edit(f / "config.json", num_attention_heads=0), "model.unusable"),
    "fewer weights than layers": (lambda f: edit(f / "config.json", num_hidden_layers=3), "model.weights_missing"),
    "more weights than layers": (lambda f: edit(f / "config.json", num_hidden_layers=1), "model.weights_unknown"),
    "other shapes": (lambda f: edit(f / "config.json", intermediate_size=80), "model.weights_differ"),
    "a lost tensor": (lambda f: weights(f / WEIGHTS, lambda t: t.pop("model.norm.weight")), "model.weights_missing"),
    "tokenizer is no JSON": (lambda f: (f / "tokenizer.json").write_text("garbage"), "model.bad_tokenizer"),
    "no end token": (lambda f: edit(f / "tokenizer_config.json", eos_token=None), "model.no_end_token"),
    "small embeddings": (lambda f: edit(f / "tokenizer_config.json", extra_special_tokens=[f"<{i}>" for i in range(9)]),
                         "model.vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLD)
def test_refused_unloaded(good, tmp_path, name):
    folder = shutil.copytree(good / "base", tmp_path / "bad")
    spoil, code = COLD[name]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        inspect(folder)
    assert (caught.value.code, caught.value.place) == (code, "model.path")
    with pytest.raises(InputError) as again:
        load(Model(path="bad"), tmp_path, CPU)
    assert again.value.code == code


@pytest.mark.parametrize("name", WARM)
def test_refused_in_loading(good, tmp_path, name):
    folder = shutil.copytree(good / "base", tmp_path / "bad")
    spoil, code = WARM[name]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load(Model(path="bad"), tmp_path, CPU)
    assert (caught.value.code, caught.value.place) == (code, "model.path")
    assert "{" not in str(caught.value)


@pytest.mark.parametrize("path,code", [("no/such/folder", "path.missing"), ("nobody/nothing-here", "model.offline"),
                                       ("../..", "model.no_config"), ("x; touch PWN", "path.missing")])  # fmt: skip
def test_no_model_there(tmp_path, path, code, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        load_model(Model(path=path), tmp_path / "a" / "b", CPU)
    assert (caught.value.code, caught.value.place) == (code, "model.path")


def test_links_as_in_the_hub_cache_are_followed(good, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for path in (good / "base").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert inspect(tmp_path / "snapshot") == inspect(good / "base")


ADAPTER = "adapter_model.safetensors"


def only_pickled_adapter(folder):
    torch.save({}, folder / "adapter_model.bin")
    drop(folder, ADAPTER)


def rename(old, new):
    def change(tensors):
        for key in list(tensors):
            tensors[key.replace(old, new)] = tensors.pop(key)

    return lambda f: weights(f / ADAPTER, change)


def poison(value):
    def change(tensors):
        next(iter(tensors.values()))[0, 0] = value

    return lambda f: weights(f / ADAPTER, change)


ADAPTERS = {
    "no config": (lambda f: drop(f, "adapter_config.json"), "adapter.no_config"),
    "unknown type": (lambda f: edit(f / "adapter_config.json", peft_type="EVIL"), "adapter.unknown_type"),
    "no type": (lambda f: edit(f / "adapter_config.json", peft_type=None), "adapter.unknown_type"),
    "no weights": (lambda f: drop(f, ADAPTER), "adapter.no_weights"),
    "only pickle": (only_pickled_adapter, "adapter.unsafe"),
    "huge rank": (lambda f: edit(f / "adapter_config.json", r=10**9), "adapter.rank"),
    "rank beyond the weights": (lambda f: edit(f / "adapter_config.json", r=64), "adapter.rank"),
    "no rank": (lambda f: edit(f / "adapter_config.json", r=0), "adapter.rank"),
    "raw PiSSA": (lambda f: edit(f / "adapter_config.json", init_lora_weights="pissa_niter_4"), "adapter.changes_base"),
    "truncated": (lambda f: truncate(f / ADAPTER, -8), "model.bad_weights"),
}
ADAPTERS_WARM = {
    "smaller rank": (lambda f: edit(f / "adapter_config.json", r=2), "adapter.shapes"),
    "no such modules": (lambda f: edit(f / "adapter_config.json", target_modules=["query"]), "adapter.no_match"),
    "no such weights": (rename("self_attn", "attention"), "adapter.partial"),
    "nothing matches": (rename("base_model", "other"), "adapter.no_match"),
    "a lost tensor": (lambda f: weights(f / ADAPTER, lambda t: t.pop(sorted(t)[0])), "adapter.partial"),
    "NaN": (poison(float("nan")), "adapter.not_finite"),
    "infinity": (poison(float("inf")), "adapter.not_finite"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_refused_unloaded(good, tmp_path, name):
    folder = shutil.copytree(good / "adapter", tmp_path / "bad")
    spoil, code = ADAPTERS[name]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        inspect_adapter(folder)
    assert (caught.value.code, caught.value.place) == (code, "tuned")


@pytest.mark.parametrize("name", ADAPTERS_WARM)
def test_adapter_refused_in_loading(good, tmp_path, name):
    folder = shutil.copytree(good / "adapter", tmp_path / "bad")
    spoil, code = ADAPTERS_WARM[name]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load_adapter(load_model(Model(path="base"), good, CPU), folder, "a")
    assert (caught.value.code, caught.value.place) == (code, "tuned")
    assert "{" not in str(caught.value)


def test_adapter_of_a_wider_base_names_the_shapes(good):
    with pytest.raises(InputError) as caught:
        Lineup(Model(path="wide"), ["adapter"], good, CPU)
    assert caught.value.code == "adapter.shapes"
    assert "(4, 32) instead of (4, 64)" in str(caught.value) and str(good / "base") in str(caught.value)


def test_faults_of_a_tuned_whole_model_are_faults_of_tuned(good, tmp_path):
    folder = shutil.copytree(good / "base", tmp_path / "whole")
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(InputError) as caught:
        Lineup(Model(path=str(good / "base")), [str(folder)], tmp_path, CPU)
    assert (caught.value.code, caught.value.place) == ("model.weights_missing", "tuned")
