"""Broken and malicious model and adapter folders, items 63 to 90 of the catalogue of bad input.

Each is refused with its own message at its own setting, most without loading a weight; nothing in them is run.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from app.i18n import LANGUAGES, table
from core import config
from core.errors import InputError
from core.models.adapters import load_adapter
from core.models.answering import render
from core.models.inspect import inspect, inspect_adapter, native_types
from core.models.lineup import Lineup
from core.models.loading import load, load_model, load_tokenizer
from core.models.registry import entries
from core.sections import Hardware, Model
from tests.conftest import ROOT
from tests.core.models_fixtures import ASK, make_adapter, make_model

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


def cast_to(folder, dtype):
    weights(folder / WEIGHTS, lambda t: t.update({name: tensor.to(dtype) for name, tensor in t.items()}))


def numbered_template(folder):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=5)


def edit_words(folder, **changes):
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    edit(folder / "tokenizer.json", model=model | changes)


def index(folder, shard):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"model.norm.weight": shard, "lm_head.weight": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shards(folder, *, twice=(), told=(), **metadata):
    """Part the weights in two files, in both of which are those in `twice`; the index tells `told` otherwise."""
    tensors, one, other = load_file(folder / WEIGHTS), "a.safetensors", "b.safetensors"
    held = {name: one if "layers" in name else other for name in tensors}
    for file in (one, other):
        part = {name: tensor for name, tensor in tensors.items() if held[name] == file or name in twice}
        save_file(part, folder / file, metadata={"format": "pt"})
    drop(folder, WEIGHTS)
    weight_map = held | dict(told)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map} | metadata))


def rotary(folder, **told):
    edit(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 10000.0} | told)


def only_pickle(folder):
    torch.save({}, folder / "pytorch_model.bin")
    drop(folder, "model.safetensors")


def foreign(folder, model_type):
    """Let the folder ask for code of its own wherever that can be asked for; the code would leave a file."""
    code = f"from pathlib import Path\nPath({str(folder / 'PWN')!r}).touch()\n"
    for name in ("evil", "modeling_llama", "configuration_llama", "tokenization_llama", "hubconf", "setup"):
        (folder / f"{name}.py").write_text(code + "class C: pass\n")
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(code)
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor")
    edit(folder / "config.json", model_type=model_type, auto_map=dict.fromkeys(names, "evil.C"))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.C", "evil.C"], "AutoProcessor": "evil.C"})


def only_pipe(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def head(path, change):
    """Rewrite the header of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    change(next(value for key, value in entries.items() if key != "__metadata__"))
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


WEIGHTS = "model.safetensors"
HUGE = struct.pack("<Q", 1 << 60) + b"{}"
COLD = {
    "64 no folder content": (lambda f: [p.unlink() for p in f.iterdir()], "model.no_config"),
    "64 no config": (lambda f: drop(f, "config.json"), "model.no_config"),
    "64 config is no JSON": (lambda f: (f / "config.json").write_text("{"), "model.bad_json"),
    "64 config is a list": (lambda f: (f / "config.json").write_text("[]"), "model.bad_json"),
    "64 config nested without end": (lambda f: (f / "config.json").write_text("[" * 200_000), "model.bad_json"),
    "64 config is not utf-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "model.bad_json"),
    "64 no model_type": (lambda f: edit(f / "config.json", model_type=None), "model.no_type"),
    "65 no weights": (lambda f: drop(f, WEIGHTS), "model.no_weights"),
    "66 only pickle": (only_pickle, "model.unsafe"),
    "67 truncated data": (lambda f: truncate(f / WEIGHTS, -100), "model.bad_weights"),
    "67 truncated header": (lambda f: truncate(f / WEIGHTS, 40), "model.bad_weights"),
    "67 empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "model.bad_weights"),
    "67 huge header": (lambda f: (f / WEIGHTS).write_bytes(HUGE), "model.bad_weights"),
    "67 garbage header": (lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 4) + b"\xff{]x"), "model.bad_weights"),
    "67 no tensors": (lambda f: save_file({}, f / WEIGHTS), "model.bad_weights"),
    "67 LFS pointer": (lambda f: (f / WEIGHTS).write_bytes(LFS), "model.lfs_pointer"),
    "67 config LFS pointer": (lambda f: (f / "config.json").write_bytes(LFS), "model.lfs_pointer"),
    "68 missing shard": (lambda f: index(f, "model-00002-of-00002.safetensors"), "model.shard_missing"),
    "68 traversal": (lambda f: index(f, "../../secret.safetensors"), "model.shard_outside"),
    "68 absolute shard": (lambda f: index(f, "/etc/passwd"), "model.shard_outside"),
    "68 pickle shard": (lambda f: index(f, "model.bin"), "model.shard_outside"),
    "68 one weight twice": (lambda f: shards(f, twice=["model.norm.weight"], metadata={}), "model.bad_weights"),
    "68 wrong shard": (lambda f: shards(f, told={"model.norm.weight": "a.safetensors"}, metadata={}),
                       "model.bad_weights"),
    "68 no metadata": (shards, "model.bad_json"),
    "68 named weights": (lambda f: edit(f / "config.json", transformers_weights="../x.safetensors"),
                      "model.shard_outside"),
    "72 auto_map": (lambda f: foreign(f, "nonesuch"), "model.remote_code"),
    "73 hub kernel": (lambda f: edit(f / "config.json", _attn_implementation="evil/kernel"), "model.remote_kernel"),
    "73 nested hub kernel": (lambda f: edit(f / "config.json", text_config={"attn_implementation": "evil/kernel"}),
                          "model.remote_kernel"),
    "64 config is a folder": (lambda f: (drop(f, "config.json"), (f / "config.json").mkdir()), "model.no_config"),
    "65 weights are a pipe": (lambda f: only_pipe(f, WEIGHTS), "model.odd_file"),
    "67 flipped header": (lambda f: flip(f / WEIGHTS, 20), "model.bad_weights"),
    "67 negative shape": (lambda f: head(f / WEIGHTS, lambda t: t.update(shape=[-1, -5])), "model.bad_weights"),
    "67 beyond the end": (lambda f: head(f / WEIGHTS, lambda t: t.update(data_offsets=[0, 10**9])),
                          "model.bad_weights"),
    "67 backwards": (lambda f: head(f / WEIGHTS, lambda t: t.update(data_offsets=[9, 1])), "model.bad_weights"),
    "69 endless vocabulary": (lambda f: edit(f / "config.json", vocab_size=10**12), "model.weights_differ"),
    "71 endless labels": (lambda f: edit(f / "config.json", num_labels=10**12), "model.weights_differ"),
    "71 heads below zero": (lambda f: edit(f / "config.json", num_key_value_heads=-1), "model.weights_differ"),
    "67 shape that its span can't hold": (lambda f: head(f / WEIGHTS, lambda t: t.update(shape=[3, 3])),
                                          "model.bad_weights"),
    "70 endless layers": (lambda f: edit(f / "config.json", num_hidden_layers=500), "model.weights_differ"),
    "73 hub kernel for some": (lambda f: edit(f / "config.json", _attn_implementation={"text_config": "evil/kernel"}),
                               "model.remote_kernel"),
    "73 deep hub kernel": (lambda f: edit(f / "config.json", a={"b": {"_attn_implementation_internal": "evil/x"}}),
                           "model.remote_kernel"),
    "73 hub kernel of experts": (lambda f: edit(f / "config.json", _experts_implementation="evil/x"),
                                 "model.remote_kernel"),
    "76 unknown packing": (lambda f: edit(f / "config.json", quantization_config={"quant_method": "os"}),
                           "packed.unknown"),
    "76 plain weights called packed": (lambda f: edit(f / "config.json", quantization_config={"load_in_4bit": True}),
                                       "packed.plain"),
    **{f"76 {dtype} that nothing explains": (partial(cast_to, dtype=dtype), "packed.untold")
       for dtype in (torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn)},
    "64 config in another encoding": (
        lambda f: (f / "config.json").write_bytes((f / "config.json").read_text().encode("utf-16")), "model.bad_json"
    ),
    "67 tokenizer LFS pointer": (lambda f: (f / "tokenizer.json").write_bytes(LFS), "model.lfs_pointer"),
    "71 positions over nothing": (lambda f: rotary(f, rope_type="yarn", factor=0), "model.rotary"),
    "71 positions by a word": (lambda f: rotary(f, rope_type="linear", factor="two"), "model.rotary"),
    "71 positions without end": (lambda f: rotary(f, rope_theta=float("inf")), "model.rotary"),
    "77 link to itself": (lambda f: (f / "loop").symlink_to(f / "loop"), "model.odd_file"),
    "77 link to nothing": (lambda f: (drop(f, WEIGHTS), (f / WEIGHTS).symlink_to("/no/such")), "model.odd_file"),
    "77 pipe of a template": (lambda f: only_pipe(f, "chat_template.jinja"), "model.odd_file"),
    "74 no tokenizer": (lambda f: drop(f, "tokenizer.json"), "model.no_tokenizer"),
    "88 an adapter": (lambda f: (f / CONFIG).write_text("{}"), "model.is_adapter"),
}  # fmt: skip
WARM = {
    "64 unknown type": (lambda f: edit(f / "config.json", model_type="nonesuch"), "model.unknown_type"),
    "64 no language model": (lambda f: edit(f / "config.json", model_type="clip"), "model.writes_nothing"),
    "71 nonsense size": (lambda f: edit(f / "config.json", hidden_size="large"), "model.unusable"),
    "71 a list for a dtype": (lambda f: edit(f / "config.json", dtype=[]), "model.unusable"),
    "71 a head below zero": (lambda f: edit(f / "config.json", head_dim=-4), "model.weights_differ"),
    "71 no heads": (lambda f: edit(f / "config.json", num_attention_heads=0), "model.unusable"),
    "70 fewer weights than layers": (lambda f: edit(f / "config.json", num_hidden_layers=3), "model.weights_missing"),
    "70 more weights than layers": (lambda f: edit(f / "config.json", num_hidden_layers=1), "model.weights_unknown"),
    "64 type that is a path": (lambda f: edit(f / "config.json", model_type="../llama"), "model.unknown_type"),
    "71 heads that do not divide": (lambda f: edit(f / "config.json", num_attention_heads=5, head_dim=None),
                                    "model.unusable"),
    "71 activation that is no such": (lambda f: edit(f / "config.json", hidden_act="os.system"), "model.unusable"),
    "71 dtype that is no such": (lambda f: edit(f / "config.json", dtype="evil"), "model.unusable"),
    "74 template is a number": (lambda f: numbered_template(f), "model.bad_tokenizer"),
    "74 tokenizer in code": (lambda f: (foreign(f, "llama"), (f / "tokenizer.json").write_text("{}")),
                             "model.bad_tokenizer"),
    "70 a config of billions": (lambda f: edit(f / "config.json", model_type="llava"), "model.weights_differ"),
    "69 other shapes": (lambda f: edit(f / "config.json", intermediate_size=80), "model.weights_differ"),
    "70 a lost tensor": (lambda f: weights(f / WEIGHTS, lambda t: t.pop("model.norm.weight")), "model.weights_missing"),
    "74 tokenizer is no JSON": (lambda f: (f / "tokenizer.json").write_text("garbage"), "model.bad_tokenizer"),
    "74 words without numbers": (lambda f: edit_words(f, vocab={"a": "x"}), "model.bad_tokenizer"),
    "74 tokenizer of no kind": (lambda f: edit_words(f, type="Nope"), "model.bad_tokenizer"),
    "74 merges of no words": (lambda f: edit_words(f, vocab={"a": 0}, merges=["a b"]), "model.bad_tokenizer"),
    "75 no end token": (lambda f: edit(f / "tokenizer_config.json", eos_token=None), "model.no_end_token"),
    "74 small embeddings": (lambda f: edit(f / "tokenizer_config.json", extra_special_tokens=list("①②③④⑤⑥⑦⑧⑨")),
                            "model.vocabulary"),
}  # fmt: skip


def check(error, code, place):
    """See that the error is the one expected, in every language, with nothing left to fill in."""
    assert (error.code, error.place) == (code, place)
    group, _, name = code.partition(".")
    for language in LANGUAGES:
        text = table(language)["message"][group][name].format(**error.params)
        assert len(text) > 10 and "{" not in text.replace("{'", "")


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path):
    """No code of a folder leaves its mark."""
    yield
    assert not list(tmp_path.rglob("PWN"))


@pytest.mark.parametrize("name", COLD)
def test_refused_unloaded(good, tmp_path, name):
    folder = shutil.copytree(good / "base", tmp_path / "bad")
    spoil, code = COLD[name]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        inspect(folder)
    check(caught.value, code, "model.path")
    with pytest.raises(InputError) as again:
        load(Model(path="bad"), tmp_path, CPU)
    assert again.value.code == code


def test_weights_in_two_files_are_those_of_one(good, tmp_path):
    shards(shutil.copytree(good / "base", tmp_path / "two"), metadata={})
    assert inspect(tmp_path / "two") == inspect(good / "base")
    two, one = (load_model(Model(path=str(path)), tmp_path, CPU) for path in (tmp_path / "two", good / "base"))
    assert torch.equal(logits(two), logits(one))


def test_whole_numbers_that_are_no_weights_are_let_pass(good, tmp_path):
    folder, more = shutil.copytree(good / "base", tmp_path / "base"), torch.ones(2, 3, dtype=torch.int64)
    weights(folder / WEIGHTS, lambda t: t.update({"model.position_ids": more, "model.layers.0.attn.bias": more.bool()}))
    assert inspect(folder).dtype == "F32"


@pytest.mark.parametrize("name", WARM)
def test_refused_in_loading(good, tmp_path, name):
    folder = shutil.copytree(good / "base", tmp_path / "bad")
    spoil, code = WARM[name]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load(Model(path="bad"), tmp_path, CPU)
    check(caught.value, code, "model.path")


@pytest.mark.parametrize("path,code", [("no/such/folder", "path.missing"), ("nobody/nothing-here", "model.offline"),
                                       ("../..", "model.no_config"), ("x; touch PWN", "path.missing")])  # fmt: skip
def test_no_model_there(tmp_path, path, code, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        load_model(Model(path=path), tmp_path / "a" / "b", CPU)
    check(caught.value, code, "model.path")


def test_links_as_in_the_hub_cache_are_followed(good, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for path in (good / "base").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert inspect(tmp_path / "snapshot") == inspect(good / "base")


CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"


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
    "79 no config": (lambda f: drop(f, "adapter_config.json"), "adapter.no_config"),
    "80 unknown type": (lambda f: edit(f / CONFIG, peft_type="EVIL"), "adapter.unknown_type"),
    "80 no type": (lambda f: edit(f / CONFIG, peft_type=None), "adapter.unknown_type"),
    "81 no weights": (lambda f: drop(f, ADAPTER), "adapter.no_weights"),
    "81 only pickle": (only_pickled_adapter, "adapter.unsafe"),
    "87 huge rank": (lambda f: edit(f / CONFIG, r=10**9), "adapter.rank"),
    "84 rank beyond the weights": (lambda f: edit(f / CONFIG, r=64), "adapter.rank"),
    "84 no rank": (lambda f: edit(f / CONFIG, r=0), "adapter.rank"),
    "79 config is a list": (lambda f: (f / CONFIG).write_text("[]"), "model.bad_json"),
    "81 pickle beside a pipe": (lambda f: only_pipe(f, ADAPTER), "model.odd_file"),
    "81 weights are a folder": (lambda f: (drop(f, ADAPTER), (f / ADAPTER).mkdir()), "adapter.no_weights"),
    "83 endless maybe": (lambda f: edit(f / CONFIG, exclude_modules=".?" * 40 + "Q"), "adapter.bad_config"),
    "83 endless expression": (lambda f: edit(f / CONFIG, target_modules="(([a-z_.0-9]+)+)+X"), "adapter.bad_config"),
    "83 slow expression": (lambda f: edit(f / CONFIG, target_modules=".*" * 30 + "X"), "adapter.bad_config"),
    "83 broken expression": (lambda f: edit(f / CONFIG, target_modules="("), "adapter.bad_config"),
    "83 endless exception": (lambda f: edit(f / CONFIG, exclude_modules="(a+)+$"), "adapter.bad_config"),
    "83 targets are a number": (lambda f: edit(f / CONFIG, target_modules=5), "adapter.bad_config"),
    "83 modules are a number": (lambda f: edit(f / CONFIG, modules_to_save=5), "adapter.bad_config"),
    "84 LFS pointer": (lambda f: (f / ADAPTER).write_bytes(LFS), "model.lfs_pointer"),
    "84 alpha is a text": (lambda f: edit(f / CONFIG, lora_alpha="8"), "adapter.bad_config"),
    "84 enormous alpha": (lambda f: edit(f / CONFIG, lora_alpha=1e308), "adapter.bad_config"),
    "84 dropout above one": (lambda f: edit(f / CONFIG, lora_dropout=1.5), "adapter.bad_config"),
    "84 kind of LoRA": (lambda f: edit(f / CONFIG, alora_invocation_tokens=[1]), "adapter.bad_config"),
    "84 endless alpha": (lambda f: edit(f / CONFIG, lora_alpha=float("inf")), "adapter.bad_config"),
    "87 rank is a text": (lambda f: edit(f / CONFIG, r="8"), "adapter.rank"),
    "87 huge rank of some": (lambda f: edit(f / CONFIG, rank_pattern={"q_proj": 10**8}), "adapter.bad_config"),
    "88 layers repeated": (lambda f: edit(f / CONFIG, layer_replication=[[0, 2]] * 1000), "adapter.bad_config"),
    "88 module to import": (
        lambda f: edit(f / CONFIG, megatron_config={"a": 1}, megatron_core="evil"),
        "adapter.bad_config",
    ),
    "84 unknown bias": (lambda f: edit(f / CONFIG, bias="evil"), "adapter.bad_config"),
    "84 negative token": (lambda f: edit(f / CONFIG, trainable_token_indices=[-1]), "adapter.bad_config"),
    "82 raw PiSSA": (lambda f: edit(f / CONFIG, init_lora_weights="pissa_niter_4"), "adapter.changes_base"),
    "84 truncated": (lambda f: truncate(f / ADAPTER, -8), "model.bad_weights"),
}
ADAPTERS_WARM = {
    "84 smaller rank": (lambda f: edit(f / CONFIG, r=2), "adapter.shapes"),
    "80 unknown task": (lambda f: edit(f / CONFIG, task_type="EVIL"), "adapter.unusable"),
    "80 settings of another kind": (lambda f: edit(f / CONFIG, eva_config={"rho": "x"}), "adapter.unusable"),
    "84 token beyond the end": (lambda f: edit(f / CONFIG, trainable_token_indices=[10**9]), "adapter.tokens"),
    "83 no such modules": (lambda f: edit(f / CONFIG, target_modules=["query"]), "adapter.no_match"),
    "85 no such weights": (rename("self_attn", "attention"), "adapter.partial"),
    "85 nothing matches": (rename("base_model", "other"), "adapter.no_match"),
    "85 a lost tensor": (lambda f: weights(f / ADAPTER, lambda t: t.pop(sorted(t)[0])), "adapter.partial"),
    "86 NaN": (poison(float("nan")), "adapter.not_finite"),
    "86 infinity": (poison(float("inf")), "adapter.not_finite"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_refused_unloaded(good, tmp_path, name):
    folder = shutil.copytree(good / "adapter", tmp_path / "bad")
    spoil, code = ADAPTERS[name]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        inspect_adapter(folder)
    check(caught.value, code, "tuned")


@pytest.mark.parametrize("name", ADAPTERS_WARM)
def test_adapter_refused_in_loading(good, tmp_path, name):
    folder = shutil.copytree(good / "adapter", tmp_path / "bad")
    spoil, code = ADAPTERS_WARM[name]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load_adapter(load_model(Model(path="base"), good, CPU), folder, "a")
    check(caught.value, code, "tuned")


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


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(12)[None]).logits


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_72_a_known_type_is_loaded_by_the_code_of_transformers(good, tmp_path):
    folder = shutil.copytree(good / "base", tmp_path / "own")
    foreign(folder, "llama")
    model, tokenizer = load(Model(path="own"), tmp_path, CPU)
    assert type(model).__module__.startswith("transformers.") and type(tokenizer).__module__.startswith("transformers.")
    assert torch.equal(logits(model), logits(load_model(Model(path="base"), good, CPU)))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in "".join(path.read_text() for path in (tmp_path / "saved").glob("*.json"))


def test_72_known_types_are_those_of_transformers():
    assert native_types() <= set(CONFIG_MAPPING_NAMES) and len(set(CONFIG_MAPPING_NAMES) - native_types()) < 20
    assert {entry.type for entry in entries() if entry.type} <= native_types()


@pytest.mark.parametrize("name", ["value_head.bin", "pytorch_model.bin", "training_args.bin", "optimizer.pt", "x.pkl",
                                  "adapter_model.bin", "rng_state.pth"])  # fmt: skip
def test_66_pickles_beside_the_weights_are_not_opened(good, tmp_path, name):
    for kind in ("base", "adapter"):
        folder = shutil.copytree(good / kind, tmp_path / kind)
        torch.save(Bomb(tmp_path / "PWN"), folder / name)
    lineup = Lineup(Model(path="base"), ["adapter"], tmp_path, CPU)
    with lineup.use("adapter") as model:
        assert logits(model).isfinite().all()
    drop(tmp_path / "base", WEIGHTS)
    if name != "training_args.bin":
        with pytest.raises(InputError) as caught:
            inspect(tmp_path / "base")
        check(caught.value, "model.unsafe", "model.path")


INJECTIONS = {
    "globals": "{{ cycler.__init__.__globals__.os.system('touch PWN') }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('touch PWN') }}",
    "endless range": "{% for i in range(10**9) %}x{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "division": "{{ 1 // 0 }}",
    "syntax": "{% for %}",
    "change": "{{ messages.clear() }}",
}


@pytest.mark.parametrize("name", INJECTIONS)
def test_75_templates_reach_nothing(good, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(good / "base", tmp_path / "base")
    (folder / "chat_template.jinja").write_text(INJECTIONS[name])
    tokenizer = load_tokenizer(Model(path="base"), tmp_path)
    with pytest.raises(InputError) as caught:
        render(tokenizer, ASK)
    check(caught.value, "chat.template", "messages")


WATCHED = """
import sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from core.models.lineup import Lineup
from core.sections import Hardware, Model
from tests.core.test_model_corpus import logits
lineup = Lineup(Model(path="base"), ["adapter"], Path(sys.argv[1]), Hardware(device="cpu"))
with lineup.use("adapter") as model:
    logits(model)
print(*opened, sep="\\n")
"""


def test_68_nothing_outside_the_folder_is_read(good, tmp_path):
    secret = shutil.copytree(good / "base", tmp_path / "secret")
    (secret / "chat_template.jinja").write_text("secret")
    folder = shutil.copytree(good / "base", tmp_path / "base")
    adapter = shutil.copytree(good / "adapter", tmp_path / "adapter")
    names = {"name_or_path": str(secret), "_name_or_path": str(secret)}
    files = {f"{kind}_file": str(secret / "tokenizer.json") for kind in ("tokenizer", "vocab", "merges", "spm")}
    edit(folder / "config.json", **names, gguf_file=str(secret / WEIGHTS), subfolder="../secret", revision="../secret")
    edit(folder / "tokenizer_config.json", **names, **files, chat_template={"default": "x", "../secret/x": "y"})
    edit(folder / "generation_config.json", **names, custom_generate=str(secret))
    edit(adapter / CONFIG, base_model_name_or_path=str(secret), revision="../secret")
    command = [sys.executable, "-c", WATCHED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    opened = done.stdout.splitlines()
    assert any(name.endswith("base/config.json") for name in opened)
    assert not [name for name in opened if "secret" in Path(name).parts]


def test_88_the_base_that_an_adapter_names_is_never_followed(good, tmp_path):
    adapter = shutil.copytree(good / "adapter", tmp_path / "chain")
    named = {"base_model_class": "C", "parent_library": "antigravity"}
    edit(adapter / CONFIG, base_model_name_or_path=str(adapter), auto_mapping=named)
    load_adapter(load_model(Model(path="base"), good, CPU), adapter, "a")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["../../x", "x" * 300, "a\0b", "~nobody/x", "no such run", ""])
def test_89_names_of_adapters_are_looked_up_and_nothing_else(good, tmp_path, name):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        Lineup(Model(path=str(good / "base")), [name], tmp_path / "a" / "b", CPU)
    assert caught.value.place == "tuned"
    check(caught.value, "path.missing" if name else "adapter.no_config", "tuned")


def test_89_one_adapter_under_two_names_is_two(good):
    lineup = Lineup(Model(path="base"), ["adapter", str(good / "adapter"), "adapter"], good, CPU)
    assert lineup.names == ("base", "adapter", str(good / "adapter"))


def test_90_nothing_is_merged_into_few_bits():
    with pytest.raises(InputError) as caught:
        config.resolve({"model": {"quantizer": {"kind": "bnb_4bit"}}, "source": "x"}, job="export")
    check(caught.value, "quantizer.export", "model.quantizer")


def test_a_template_without_end_is_refused(good, tmp_path):
    """In a process of its own: what never ends goes on until its process does."""
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages }}"
    folder = shutil.copytree(good / "base", tmp_path / "endless")
    (folder / "chat_template.jinja").write_text(template)
    code = f"""
from pathlib import Path
from core.errors import InputError
from core.models import loading, trial
from core.sections import Model
trial.SECONDS = 1
try:
    loading.load_tokenizer(Model(path={str(folder)!r}), Path({str(tmp_path)!r}))
except InputError as error:
    print(error.code, error.place)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["model.template_endless", "data.template"], done.stderr
