"""A run that was stopped and resumed ends bit for bit like one that was not."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import InputError, Stopped
from core.events import fold
from core.files import read_json, write_json
from core.models.identity import identity
from core.models.inspect import inspect_adapter
from tests.conftest import copy_of, write_rows
from tests.core.helpers import digest, of_type, train
from tests.core.test_preference import PAIRS

TUNERS = {
    "lora": ["tuner.dropout=0.2", "training.max_steps=12"],
    "dora": ["tuner.dora=true", "training.group_by_length=false"],
    "pissa": [
        "tuner.pissa=true",
        "tuner.dora=true",
        "tuner.rslora=true",
        "training.accumulation=2",
        "training.max_steps=8",
    ],
    "tokens": ["model.add_tokens=[Turn this]", "tuner.dropout=0.1", "training.max_steps=8"],
    "eva": ["tuner.eva=true", "tuner.dropout=0.1", "training.max_steps=6"],
    "loftq": ["tuner.loftq=true", "model.quantizer=bnb_4bit", "training.max_steps=6"],
    "plus": ["tuner.plus_ratio=16", "tuner.layers=1", "tuner.dora=true", "training.max_steps=8"],
    "expand": ["tuner.kind=expand", "tuner.blocks=1"],
    "full": ["tuner.kind=full"],
    "freeze": ["tuner.kind=freeze", "tuner.layers=1"],
}


@pytest.mark.parametrize(("name", "stops"), [
    ("lora", (6, 9)), ("dora", (3,)), ("pissa", (3, 5)), ("tokens", (3,)), ("plus", (3,)), ("eva", (3,)),
    ("loftq", (3,)),
    ("expand", (6,)), ("full", (6,)), ("freeze", (9,)),
])  # fmt: skip
def test_resume_is_bit_exact(make_run: Callable[..., Path], name: str, stops: tuple[int, ...]) -> None:
    """36 rows in batches of 4 make epochs of 9 steps (5 when two are accumulated): stops within, at the end, after."""
    whole, broken = make_run("whole", *TUNERS[name]), make_run("broken", *TUNERS[name])
    expected = train(whole)
    for stop in stops:
        with pytest.raises(Stopped):
            train(broken, stop_at=stop)
        assert (broken / f"checkpoints/checkpoint-{stop}/MANIFEST.json").exists()
    assert train(broken) == expected
    saved = "model" if name in ("full", "freeze", "expand") else "adapter"
    assert digest(broken / saved) == digest(whole / saved)
    steps = {e["step"]: (e["loss"], e["grad_norm"], e["lr"]) for e in of_type(broken, "step")}
    assert steps == {e["step"]: (e["loss"], e["grad_norm"], e["lr"]) for e in of_type(whole, "step")}
    assert [b[:2] for b in fold(broken)[0].curves["loss"].bins] == [b[:2] for b in fold(whole)[0].curves["loss"].bins]


def test_what_is_told_every_third_step_is_what_an_unbroken_run_tells(
    make_run: Callable[..., Path], tiny_data: Path
) -> None:
    """Gone on from a checkpoint that was written by the way, and from one written because the run was stopped."""
    write_rows(tiny_data / "pairs.jsonl", PAIRS)
    settings = ["stage=dpo", "data.train=[pairs.jsonl]", "training.log_every=3", "saving.every=2"]
    whole, broken = make_run("whole", *settings), make_run("broken", *settings)
    expected = train(whole)
    for stop in (4, 7):
        with pytest.raises(Stopped):
            train(broken, stop_at=stop)
        if stop == 4:
            shutil.rmtree(broken / "checkpoints/checkpoint-4")
    assert train(broken) == expected
    steps = {e["step"]: (e["loss"], e["metrics"]) for e in of_type(broken, "step")}
    wanted = {e["step"]: (e["loss"], e["metrics"]) for e in of_type(whole, "step")}
    assert list(wanted) == [3, 6, 9, 10] and {step: steps[step] for step in wanted} == wanted


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(make_run: Callable[..., Path]) -> None:
    """It has neither what was not reported yet nor the identity of the model."""
    run = make_run("older")
    with pytest.raises(Stopped):
        train(run, stop_at=3)
    state, manifest = (run / "checkpoints/checkpoint-3" / name for name in ("trainer_state.json", "MANIFEST.json"))
    told, listed = read_json(state), read_json(manifest)
    del told["stateful_callbacks"]["Watch"], listed["sum"], listed["model"], listed["judge"]
    write_json(state, told)
    content = state.read_bytes()
    listed["files"][state.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(manifest, listed)
    train(run)
    assert [e["resumed"] for e in of_type(run, "phase") if e["phase"] == "train"] == [0, 3]


def test_another_model_or_template_is_refused(make_run: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    run = make_run("first", f"model.path={model}")
    with pytest.raises(Stopped):
        train(run, stop_at=3)
    for name, end in (("model.safetensors", b" "), ("chat_template.jinja", b"} ")):
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[:-1] + end)
        with pytest.raises(InputError) as caught:
            train(run)
        assert (caught.value.code, caught.value.place) == ("model.changed", "model.path")
        (model / name).write_bytes(content)
    train(run)


FULL = ["tuner.kind=full", "training.max_steps=6", "training.eval_every=3", "saving.every=4"]
ALONE = ["training.clip=0"]
OPTIMIZERS = {
    "8bit": ["optimizer.variant=8bit"],
    "adafactor": ["optimizer=adafactor", "model.precision=pure_bf16"],
    "galore": ["optimizer=galore", "optimizer.rank=8", "optimizer.update_every=4"],
    "galore layers": [
        "optimizer=galore", "optimizer.rank=8", "optimizer.update_every=2", "optimizer.layerwise=true", *ALONE
    ],
    "apollo": ["optimizer=apollo", "optimizer.rank=8", "optimizer.update_every=2", "training.accumulation=2"],
    "apollo bf16": ["optimizer=apollo", "optimizer.rank=1", "optimizer.scaling=tensor", "model.precision=pure_bf16"],
    "badam": ["optimizer=badam", "optimizer.switch_every=2", "optimizer.order=random", "optimizer.ends=true"],
    "badam bf16": ["optimizer=badam", "optimizer.switch_every=4", "model.precision=pure_bf16"],
    "badam ratio": ["optimizer=badam", "optimizer.mode=ratio", "optimizer.switch_every=2", "optimizer.pick=scatter",
                    "optimizer.ratio=0.3", "training.accumulation=2", *ALONE],
    "muon": ["optimizer=muon", "optimizer.weight_decay=0.1"],
    "adam_mini": ["optimizer=adam_mini"],
    "schedule_free": ["optimizer=schedule_free", "training.schedule=constant", "training.warmup=0.5"],
    "schedule_free lora": ["optimizer=schedule_free", "training.schedule=constant", "tuner.kind=lora",
                           "tuner.plus_ratio=4"],
    "lomo": ["optimizer=lomo", *ALONE],
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_bit_exactly(make_run: Callable[..., Path], name: str) -> None:
    """Stopped in the middle of what it keeps: between two projections, in the turn of a block, before an evaluation."""
    if name.startswith("schedule_free"):
        pytest.importorskip("schedulefree")
    settings = [*FULL, *OPTIMIZERS[name]]
    whole, broken = make_run("whole", *settings), make_run("broken", *settings)
    expected = train(whole)
    with pytest.raises(Stopped):
        train(broken, stop_at=3)
    assert train(broken) == expected
    saved = "adapter" if "lora" in name else "model"
    assert digest(broken / saved) == digest(whole / saved)
    steps = [{e["step"]: (e["loss"], e["grad_norm"]) for e in of_type(run, "step")} for run in (whole, broken)]
    assert steps[0] == steps[1] and all(norm > 0 for _, norm in steps[0].values())
    evals = [{e["step"]: e["loss"] for e in of_type(run, "eval")} for run in (whole, broken)]
    assert evals[0] == evals[1] and evals[0]


@pytest.mark.parametrize("name", ["lora", "pissa", "loftq"])
def test_a_checkpoint_is_an_adapter_where_it_fits_the_base(make_run: Callable[..., Path], name: str) -> None:
    run = make_run("stopped", *TUNERS[name])
    with pytest.raises(Stopped):
        train(run, stop_at=3)
    checkpoint = run / "checkpoints" / "checkpoint-3"
    if name == "lora":
        assert inspect_adapter(checkpoint).parameters
        return
    with pytest.raises(InputError) as caught:
        inspect_adapter(checkpoint)
    assert (caught.value.code, caught.value.place) == ("adapter.checkpoint", "tuned")


def test_a_model_that_changes_between_its_ends_is_another(tmp_path: Path) -> None:
    """As when an adapter is merged into its middle layers; a large file is read in places all over it."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for count in (10**6, 4 * 10**6):  # read whole, and in places
        weights = {"a": torch.zeros(count), "b": torch.zeros(count // 8), "c": torch.zeros(count)}
        save_file(weights, model / "model.safetensors")
        before = identity(model)
        save_file(weights | {"b": torch.ones(count // 8)}, model / "model.safetensors")
        assert identity(model) != before
