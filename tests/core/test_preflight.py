"""What is wrong is said before anything is started: at its setting, in no time, without a library of training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import config, preflight, runs
from core.errors import InputError
from core.models import room
from core.models.room import _smi

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def broken(tiny_model, tiny_data, tmp_path):
    """A workspace with a good model and set, and bad ones beside them."""
    for name in ("good", "no-tokenizer", "cut", "pickled", "wobble", "both-ways", "packed"):
        shutil.copytree(tiny_model, tmp_path / name)
    for file in (tmp_path / "no-tokenizer").glob("*token*"):
        file.unlink()
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name, more in (
        ("wobble", {"model_type": "wobble"}),
        ("both-ways", {"model_type": "roberta"}),
        ("packed", {"quantization_config": {"quant_method": "aqlm"}}),
    ):
        settings = tmp_path / name / "config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | more))
    packed = tmp_path / "packed" / "model.safetensors"
    save_file(load_file(packed) | {"packed": torch.zeros(1, dtype=torch.int32)}, packed, {"format": "pt"})
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    shutil.copytree(tiny_data, tmp_path / "data")
    lines = (tmp_path / "data" / "orders.jsonl").read_text().splitlines()
    (tmp_path / "data" / "torn.jsonl").write_text("\n".join([*lines[:3], '{"instruction": "a', *lines[3:]]))
    (tmp_path / "data" / "columns.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    described = json.loads((tmp_path / "data" / "dataset_info.json").read_text())
    described |= {"torn": {"file_name": "torn.jsonl"}, "columns": {"file_name": "columns.jsonl"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(described))
    return tmp_path


GOOD = {"model": {"path": "good"}, "data": {"folder": "data", "train": ["orders"]}}
WRONG = {
    "no model": ({"model": {"path": "nowhere"}}, "model.path", "path.missing"),
    "revision of a folder": ({"model": {"path": "good", "revision": "v2"}}, "model.revision", "model.revision_here"),
    "no tokenizer": ({"model": {"path": "no-tokenizer"}}, "model.path", "model.no_tokenizer"),
    "cut weights": ({"model": {"path": "cut"}}, "model.path", "model.bad_weights"),
    "pickled weights": ({"model": {"path": "pickled"}}, "model.path", "model.unsafe"),
    "unknown type": ({"model": {"path": "wobble"}}, "model.path", "model.unknown_type"),
    "both ways": ({"model": {"path": "both-ways"}}, "model.path", "model.sees_ahead"),
    "package that is not here": ({"model": {"path": "packed"}}, "model.path", "package.missing"),
    "fused kernels on a CPU": ({"training": {"liger": True}}, "training.liger", "liger.device"),
    "no data": ({"data": {"folder": "nowhere"}}, "data.folder", "path.missing"),
    "no set": ({"data": {"train": ["zzz"]}}, "data.train", "data.unknown_set"),
    "no evaluation set": ({"data": {"eval": "zzz"}}, "data.eval", "data.unknown_set"),
    "torn line": ({"data": {"train": ["torn"]}}, "data.train", "data.json"),
    "routers": ({"training": {"router_aux_loss": 0.01}}, "training.router_aux_loss", "moe.no_router"),
    "flex on a CPU": (
        {"model": {"attention": "flex_attention"}, "hardware": {"device": "cpu"}},
        "model.attention",
        "attention.flex",
    ),
    "flash on a CPU": (
        {"model": {"attention": "flash_attention_2"}, "hardware": {"device": "cpu"}},
        "model.attention",
        "model.attention",
    ),
    "target": ({"tuner": {"targets": ["all-linear", "q_porj"]}}, "tuner.lora.targets", "tuner.no_module"),
    "pattern": ({"tuner": {"targets": [r".*layers\.\d+\..*porj"]}}, "tuner.lora.targets", "tuner.no_module"),
    "holder of layers": ({"tuner": {"targets": ["self_attn"]}}, "tuner.lora.targets", "tuner.no_adapter"),
    "norms": ({"tuner": {"targets": [".*norm"]}}, "tuner.lora.targets", "tuner.no_adapter"),
    "whole name": ({"tuner": {"targets": ["q_proj$"]}}, "tuner.lora.targets", "tuner.no_module"),
    "no name": ({"tuner": {"targets": ["q_proj", ""]}}, "tuner.lora.targets", "tuner.no_module"),
    "turned holder": ({"tuner": {"kind": "oft", "targets": ["mlp"]}}, "tuner.oft.targets", "tuner.no_adapter"),
    "no tables turned": (
        {"tuner": {"kind": "oft", "targets": ["embed_tokens"]}},
        "tuner.oft.targets",
        "tuner.no_adapter",
    ),
    "tables": ({"tuner": {"targets": [".*embed.*"]}}, "tuner.lora.targets", "tuner.apart"),
    "whole pattern": ({"tuner": {"extra": [".*norm"]}}, "tuner.lora.extra", "tuner.no_module"),
    "whole weights": ({"tuner": {"extra": ["weight"]}}, "tuner.lora.extra", "tuner.no_module"),
    "whole list": ({"tuner": {"extra": ["layers"]}}, "tuner.lora.extra", "tuner.not_whole"),
    "whole model": ({"tuner": {"extra": ["model"]}}, "tuner.lora.extra", "lora.all_whole"),
    "no whole module": ({"tuner": {"extra": [""]}}, "tuner.lora.extra", "tuner.no_module"),
    "whole module": ({"tuner": {"extra": ["norn"]}}, "tuner.lora.extra", "tuner.no_module"),
    "layer": ({"tuner": {"layers": "0-99"}}, "tuner.lora.layers", "lora.no_layer"),
    "experts": ({"tuner": {"experts": True}}, "tuner.lora.experts", "lora.no_experts"),
    "singular parts": ({"tuner": {"rank": 1000, "pissa": True}}, "tuner.lora.rank", "lora.pissa_rank"),
    "turned layer": ({"tuner": {"kind": "oft", "targets": ["q_porj"]}}, "tuner.oft.targets", "tuner.no_module"),
    "block": ({"tuner": {"kind": "oft", "block": 7}}, "tuner.oft.block", "oft.block"),
    "frozen layers": ({"tuner": {"kind": "freeze", "layers": 99}}, "tuner.freeze.layers", "freeze.layers"),
    "module": ({"tuner": {"kind": "freeze", "extra": ["norn"]}}, "tuner.freeze.extra", "tuner.no_module"),
    "weights": ({"tuner": {"kind": "freeze", "extra": ["weight"]}}, "tuner.freeze.extra", "tuner.no_module"),
    "new blocks": ({"tuner": {"kind": "expand", "blocks": 99}}, "tuner.expand.blocks", "expand.blocks"),
    "other columns": ({"data": {"train": ["columns"]}}, "data.train", "data.no_column"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_run_is_refused_at_its_setting(broken, case):
    layer, place, code = WRONG[case]
    with pytest.raises(InputError) as raised:
        preflight.check(config.resolve(GOOD, layer), broken)
    assert (raised.value.place, raised.value.code) == (place, code)


@pytest.mark.parametrize("target", [
    ".*q_proj$", "^model.*_proj$", "lm_head$", "embed_tokens", "^(q|v)_proj$|.*up_proj", "self_attn.q_proj",
    r".*self_attn\.q_.*", r"model\.layers\.\d+\.mlp\..*",
])  # fmt: skip
def test_a_target_that_may_mean_a_layer_passes(broken, target):
    preflight.check(config.resolve(GOOD, {"tuner": {"targets": [target]}}), broken)


@pytest.mark.parametrize(("kind", "given"), [("targets", "q_porj"), ("targets", "q_proj$"), ("extra", "q_pro")])
def test_what_looks_like_a_name_that_is_missing_is_told_first(broken, kind, given):
    with pytest.raises(InputError) as raised:
        preflight.check(config.resolve(GOOD, {"tuner": {kind: [given]}}), broken)
    assert raised.value.params["known"].startswith("q_proj")


def test_a_good_run_and_a_hub_model_pass(broken):
    preflight.check(config.resolve(GOOD), broken)
    preflight.check(config.resolve(GOOD, {"model": {"path": "org/some-model"}}), broken)
    flex = {"model": {"path": "good", "attention": "flex_attention"}, "hardware": {"device": "cuda"}}
    preflight.check(config.resolve(GOOD, flex), broken)
    flex["hardware"] = {"device": "cpu"}
    preflight.check(config.resolve(flex, job="serving"), broken)  # it answers there, though it can't learn


def test_processes_that_need_gpus_are_refused_before_they_start(broken, monkeypatch):
    divided = {"launcher": {"kind": "fsdp2", "processes": 2}, "hardware": {"device": "auto"}}
    monkeypatch.setattr(room, "gpus", list)
    with pytest.raises(InputError) as raised:
        preflight.check(config.resolve(GOOD, divided), broken)
    assert (raised.value.place, raised.value.code) == ("launcher", "launcher.gpus")
    monkeypatch.setattr(room, "gpus", lambda: [(0.0, 0.0, 80_000.0, 30.0)] * 2)
    preflight.check(config.resolve(GOOD, divided), broken)


def test_a_device_that_is_found_is_looked_at(broken, monkeypatch):
    """By default it is the first there is: without a GPU the CPU."""
    flex = config.resolve(GOOD, {"model": {"attention": "flex_attention"}})
    monkeypatch.setenv("PATH", "/nowhere")
    _smi.cache_clear()
    try:
        with pytest.raises(InputError) as raised:
            preflight.check(flex, broken)
    finally:
        _smi.cache_clear()
    assert (raised.value.place, raised.value.code) == ("model.attention", "attention.flex")


@pytest.mark.parametrize(
    ("layer", "place", "package"),
    [
        ({"launcher": {"kind": "deepspeed"}}, "launcher", "deepspeed"),
        ({"hardware": {"cluster": "http://10.0.0.1:8265"}}, "hardware.cluster", "ray"),
        ({"model": {"quantizer": {"kind": "bnb_4bit"}}}, "model.quantizer", "bitsandbytes"),
        ({"model": {"quantizer": {"kind": "hqq"}}, "hardware": {"device": "cuda"}}, "model.quantizer", "hqq"),
        ({"optimizer": {"variant": "8bit"}}, "optimizer.adamw.variant", "bitsandbytes"),
        ({"optimizer": {"kind": "schedule_free"}, "training": {"schedule": "constant"}}, "optimizer", "schedulefree"),
        ({"watching": {"report_to": ["wandb"]}}, "watching.report_to", "wandb"),
        ({"training": {"liger": True}, "hardware": {"device": "cuda"}}, "training.liger", "liger_kernel"),
    ],
)
def test_a_package_that_is_not_here_is_named_before_anything_starts(broken, layer, place, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # find_spec takes it for absent
    job = config.resolve(GOOD, layer)
    for check in (lambda: preflight.check(job, broken), lambda: preflight.check_packages(job)):
        with pytest.raises(InputError) as raised:
            check()
        assert (raised.value.place, raised.value.code) == (place, "package.missing")
        assert raised.value.params == {"package": package}


def test_nothing_to_learn_is_refused():
    idle = {"tuner": {"kind": "freeze", "layers": 0}}
    with pytest.raises(InputError) as raised:
        config.resolve(idle)
    assert (raised.value.place, raised.value.code) == ("tuner.freeze.layers", "tuner.nothing")
    for more in ({"tuner": {"extra": ["norm"]}}, {"model": {"add_tokens": ["new"]}, "optimizer": {"weight_decay": 0}}):
        config.resolve(idle, more)


@pytest.mark.parametrize(
    ("layer", "place", "code"),
    [
        ({"kind": "evaluation", "evaluated": {"folder": "data", "set": "torn"}}, "evaluated.set", "data.json"),
        ({"kind": "evaluation", "evaluated": {"folder": "good", "set": "x"}}, "evaluated.set", "data.unknown_set"),
        ({"kind": "serving", "tuned": ["data"]}, "tuned", "adapter.no_config"),
        ({"kind": "export"}, "source", "config.missing"),
        ({"kind": "export", "source": "good", "folder": "data"}, "folder", "path.not_empty"),
    ],
)
def test_a_bad_job_of_another_kind_is_refused_too(broken, layer, place, code):
    with pytest.raises(InputError) as raised:
        preflight.check(config.resolve({"model": {"path": "good"}}, layer), broken)
    assert (raised.value.place, raised.value.code) == (place, code)


def test_it_is_cold_and_makes_nothing(broken):
    script = (
        "import sys; from pathlib import Path; from core import config, preflight\n"
        f"preflight.check(config.resolve({GOOD!r}), Path({str(broken)!r}))\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    assert runs.listed(broken) == []


@pytest.mark.parametrize("kind", ["evaluation", "serving"])
def test_what_only_judges_is_asked_nothing(broken, kind):
    layers = [{"kind": kind, "model": {"path": "good"}, "tuned": ["judge"]}]
    layers += [{"evaluated": {"folder": "data", "set": "orders"}}] if kind == "evaluation" else []
    for name, stage in (("judge", "rm"), ("pupil", "sft")):
        folder = runs.create(config.resolve({"name": name, "stage": stage}), broken)
        shutil.copytree(broken / "good", folder / "model")
    with pytest.raises(InputError) as raised:
        preflight.check(config.resolve(*layers), broken)
    assert (raised.value.place, raised.value.code) == ("tuned", "run.judges")
    preflight.check(config.resolve(*layers, {"tuned": ["pupil"]}), broken)
    preflight.check(config.resolve({"kind": "export", "model": {"path": "good"}, "source": "judge"}), broken)
