"""Several processes learn as one does, stop together, and none outlives the others."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import TrainingArguments

from core import config, preflight, runs
from core.crew import Plan
from core.data.pack import Flat
from core.errors import InputError
from core.models import room
from core.models.headers import tensors
from core.models.memory import plan
from core.models.shapes import Shapes
from core.team import Team
from core.training import fit
from core.training.arguments import batches
from core.training.objective import NextToken
from core.training.ordered import Ordered
from core.training.shared import Share, Shared
from tests.conftest import ROOT, write_rows
from tests.core.helpers import digest, of_type, train, weights
from tests.core.several import together
from tests.core.test_preference import FEEDBACK
from tests.core.test_preference import PAIRS as PICKED

DDP = "launcher.kind=ddp"
STEPS = 6
PAIRS: dict[str, list[str]] = {
    "uneven": ["data.max_rows=39", "training.group_by_length=false"],
    "grouped": ["training.accumulation=2", "data.eval_share=0", "training.group_by_length=true"],
    "stream": ["data.streaming=true", "data.eval=chats", "data.buffer=8"],
    "packed": ["data.packing=always", "data.cutoff=64", "training.group_by_length=false"],
    "dpo": ["stage=dpo", "stage.loss=bco_pair", "data.train=[pairs.jsonl]", "data.eval_share=0", "data.max_rows=7"],
    "kto": ["stage=kto", "data.train=[liked.jsonl]", "data.eval_share=0", "data.max_rows=7"],
    "full": ["tuner.kind=full", "optimizer.learning_rate=0.001", "data.eval_share=0"],
    "full rm": ["stage=rm", "tuner.kind=full", "optimizer.learning_rate=0.001", "data.train=[pairs.jsonl]",
                "data.eval_share=0", "data.max_rows=8", "training.gradient_checkpointing=true"],
    # so cold that the same answers are drawn; what is learned is to foretell what they are worth
    "ppo": ["stage=ppo", "stage.drawing.temperature=0.00001", "stage.drawing.max_new_tokens=6", "stage.epochs=1",
            "stage.reward.by=length", "stage.reward.length=5", "stage.kl_weight=0", "optimizer.learning_rate=0.0001"],
}  # fmt: skip
"""What is learned in one process with batches of 8, and in two with batches of 4."""
CALM = "optimizer.epsilon=0.001"
"""AdamW moves a weight with next to no gradient as far as any other, wherever rounding points; not beneath this."""


@pytest.fixture
def make(make_run: Callable[..., Path]) -> Callable[..., Path]:
    return make_run


@pytest.fixture(autouse=True)
def compared(tiny_data: Path) -> None:
    write_rows(tiny_data / "pairs.jsonl", PICKED)
    write_rows(tiny_data / "liked.jsonl", FEEDBACK)


def figures(folder: Path) -> list[tuple[float, ...]]:
    return [(e["loss"], e["grad_norm"], e["lr"], e["tokens"]) for e in of_type(folder, "step")]


def curves(folder: Path) -> list[dict[str, float]]:
    return [e.get("metrics", {}) for e in of_type(folder, "step")]


def test_two_processes_learn_as_one_and_go_on_where_they_stopped(make: Callable[..., Path]) -> None:
    steps = [f"training.max_steps={STEPS}", CALM]
    two = {name: make(f"{name}-2", DDP, "training.batch_size=4", *steps, *layer) for name, layer in PAIRS.items()}
    whole, broken = (make(name, DDP, "training.batch_size=2", "tuner.dropout=0.2") for name in ("whole", "broken"))
    drawing = [DDP, "stage=grpo", "stage.group=2", "stage.minibatch=1", "stage.drawing.max_new_tokens=4",
               "stage.reward.by=regex", "stage.reward.pattern=e", "data.max_rows=7", "training.batch_size=4",
               "training.max_steps=3"]  # fmt: skip
    drawn, redrawn = make("drawn", *drawing), make("redrawn", *drawing)
    again = [(folder, at) for folder, last in ((broken, 6), (redrawn, 3)) for at in (last, None)]
    together([*((folder, None) for folder in [*two.values(), drawn, whole]), *again])

    for name, layer in PAIRS.items():
        one = make(f"{name}-1", "training.batch_size=8", *steps, *layer)
        train(one)
        near = 3e-3 if name == "ppo" else 2e-4  # among answers as good as sure, rounding is steep
        assert figures(two[name]) == [pytest.approx(step, rel=near) for step in figures(one)], name
        assert curves(two[name]) == [pytest.approx(step, rel=near, abs=1e-5) for step in curves(one)], name
        assert len(figures(one)) == STEPS
        evals = [[e["loss"] for e in of_type(folder, "eval")] for folder in (one, two[name])]
        assert evals[1] == pytest.approx(evals[0], rel=1e-4), name
        saved = "model" if name.startswith("full") else "adapter"
        learned = weights(one / saved)
        for key, tensor in weights(two[name] / saved).items():
            torch.testing.assert_close(tensor, learned[key], rtol=1e-2, atol=2e-4, msg=f"{name} {key}")

    assert [e["step"] for e in of_type(drawn, "step")] == [1, 2, 3]  # though 7 rows are none of two processes' batches
    saved = [(e["what"], e["step"]) for e in of_type(redrawn, "saved")]
    assert saved == [("checkpoint", 2), ("checkpoint", 3), ("adapter", 3)]  # stopped while it drew for its third step
    assert digest(redrawn / "adapter") == digest(drawn / "adapter")
    told = of_type(two["kto"], "step")[-1]["metrics"]
    assert told["rewards/margins"] == pytest.approx(told["rewards/chosen"] - told["rewards/rejected"])
    manifest = json.loads((broken / "checkpoints" / "checkpoint-10" / "MANIFEST.json").read_text())
    assert manifest["processes"] == 2 and {"rng_state_0.pth", "rng_state_1.pth"} <= manifest["files"].keys()
    assert digest(broken / "adapter") == digest(whole / "adapter")
    assert {e["step"]: e["loss"] for e in of_type(broken, "step")} == {
        e["step"]: e["loss"] for e in of_type(whole, "step")
    }
    assert len(of_type(whole, "saved")) == 4  # three checkpoints and the adapter, each once

    shutil.rmtree(broken / "adapter")
    with pytest.raises(InputError) as caught:
        train(broken)
    assert (caught.value.code, caught.value.place, caught.value.params["before"]) == ("run.processes", "launcher", 2)


ZERO: dict[str, list[str]] = {
    "lora": ["tuner.plus_ratio=4", "launcher.zero=2", "training.schedule=polynomial"],
    "full": ["tuner.kind=full", "optimizer.learning_rate=0.001", "launcher.zero=2", "launcher.offload=optimizer"],
    "zero3": ["tuner.kind=full", "optimizer.learning_rate=0.001", "launcher.zero=3"],
    "lora3": ["tuner.plus_ratio=4", "launcher.zero=3"],
}


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra deepspeed is not installed")
@pytest.mark.parametrize("processes", [2, 1])
def test_deepspeed_learns_as_one_process_and_goes_on(
    processes: int, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    common = ["data.eval_share=0", "training.group_by_length=false", f"training.max_steps={STEPS}"]
    divided = ["launcher=deepspeed", f"training.batch_size={8 // processes}", *common]
    two = {name: make(f"{name}-2", *divided, *layer) for name, layer in ZERO.items()}
    broken = {name: make(f"{name}-b", *divided, *ZERO[name]) for name in ("lora", "zero3")}
    again = [(folder, at) for folder in broken.values() for at in (3, None)]
    together([*((folder, None) for folder in two.values()), *again], processes, divides=True)
    for name, layer in ZERO.items():
        saved = "adapter" if "lora" in name else "model"
        one = make(f"{name}-1", "training.batch_size=8", *common, *(s for s in layer if "launcher" not in s))
        train(one)
        assert figures(two[name]) == [pytest.approx(step, rel=1e-3) for step in figures(one)], name
        learned = weights(one / saved)
        for key, tensor in weights(two[name] / saved).items():
            torch.testing.assert_close(tensor, learned[key], rtol=1e-2, atol=2e-4, msg=f"{name} {key}")
        if name in broken:
            assert digest(broken[name] / saved) == digest(two[name] / saved), name


@pytest.mark.parametrize(("launcher", "meets"), [("deepspeed", True), ("fsdp2", True), ("ddp", False)])
def test_one_process_that_divides_the_model_is_told_its_place(launcher: str, meets: bool) -> None:
    run = config.run(config.override([f"launcher={launcher}"]))
    plan = Plan(**run.launcher.crew(1))
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    assert plan.variables(0) == (alone if meets else {})
    assert fit._kind(run, NextToken(), Flat(), Team(), None) is (Shared if meets else Ordered)


def wait(condition: Callable[[], Any], seconds: float = 200) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited {seconds} s in vain")


def alive(folder: Path) -> list[psutil.Process]:
    """Return every process that was started for a run, by its command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if str(folder) in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def number(process: psutil.Process) -> str:
    return process.environ().get("RANK", "")


def test_a_launched_run_of_two_stops_resumes_and_does_not_outlive_one_of_them(make: Callable[..., Path]) -> None:
    folder = make("long", DDP, "launcher.processes=2", "training.max_steps=100000", "saving.every=5",
                  "training.batch_size=2", "data.eval_share=0")  # fmt: skip
    runs.launch(folder)
    wait(lambda: runs.look(folder).state.step >= 6)
    assert sorted(number(process) for process in alive(folder)) == ["", "0", "1"]  # the supervisor has none
    runs.stop(folder)
    wait(lambda: not alive(folder))
    view = runs.look(folder)
    assert (view.status, view.exit["status"]) == ("stopped", 20)
    assert (folder / "checkpoints" / f"checkpoint-{view.state.step}").exists()
    stopped_at = view.state.step

    runs.resume(folder)
    wait(lambda: runs.look(folder).state.step >= stopped_at + 6)
    next(process for process in alive(folder) if number(process) == "1").kill()
    wait(lambda: not alive(folder))
    view = runs.look(folder)
    assert (view.status, view.exit["signal"]) == ("killed", signal.SIGKILL)
    assert (view.exit["rank"], view.exit["processes"]) == (1, 2)
    assert view.state.error is not None and view.state.error["code"] == "rank.died"
    assert view.state.error["params"] == {"rank": 1, "size": 2, "signal": 9}
    assert [event["cause"] for event in of_type(folder, "end")] == ["stopped", "failed"]
    assert [event["processes"] for event in of_type(folder, "started")] == [2, 2]
    steps = [event["step"] for event in of_type(folder, "step")]
    assert steps == sorted(set(steps))  # one process told them, and none was done twice


@pytest.mark.parametrize(("rows", "batch", "size"), [
    (36, 4, 2), (35, 4, 2), (33, 4, 2), (7, 4, 3), (2, 4, 2), (5, 1, 2), (6, 1, 3), (17, 2, 8), (100, 3, 7),
])  # fmt: skip
def test_rows_are_dealt_out_evenly_and_each_once(rows: int, batch: int, size: int) -> None:
    shares = [list(Share(range(rows), batch, Team(rank, size))) for rank in range(size)]
    assert (
        {len(share) for share in shares}
        == {batches(rows, batch, size)}
        == {len(Share(range(rows), batch, Team(0, size)))}
    )
    dealt = sorted(row for share in shares for part in share for row in part)
    assert dealt == list(range(rows if batch > 1 else rows - rows % size))
    for at in range(len(shares[0])):
        counts = [len(share[at]) for share in shares]
        assert min(counts) >= 1 and max(counts) <= batch and max(counts) - min(counts) <= 1
    whole = [sorted(row for share in shares for row in share[at]) for at in range(len(shares[0]))]
    if rows % (batch * size) == 0 or rows % (batch * size) >= size:  # the same batches as one process has
        assert whole == [list(range(begin, min(begin + batch * size, rows))) for begin in range(0, rows, batch * size)]


def test_where_all_draw_each_has_as_many_rows() -> None:
    shares = [list(Share(range(7), 2, Team(rank, 2), even=True)) for rank in range(2)]
    assert [[len(part) for part in share] for share in shares] == [[2, 1], [2, 1]]
    assert sorted(row for share in shares for part in share for row in part) == list(range(6))
    assert len(shares[0]) == batches(7, 2, 2, even=True) == len(Share(range(7), 2, Team(0, 2), even=True))


@pytest.mark.parametrize(("settings", "code", "place"), [
    (["hardware.devices=[0,1]"], "launcher.one", "hardware.devices"),
    (["hardware.devices=[0,0]"], "devices.twice", "hardware.devices"),
    (["hardware.devices=[-1]"], "devices.twice", "hardware.devices"),
    (["hardware.devices=[0]", "hardware.device=cpu"], "devices.none", "hardware.devices"),
    ([DDP, "hardware.device=mps"], "launcher.mps", "launcher"),
    ([DDP, "hardware.devices=[0,1]", "launcher.processes=3"], "launcher.count", "launcher.ddp.processes"),
    (["launcher=fsdp2", "stage=rm"], "launcher.stage", "stage"),
    (["launcher=deepspeed", "stage=grpo"], "launcher.stage", "stage"),
    (["launcher=deepspeed", "launcher.offload=all"], "launcher.offload", "launcher.deepspeed.offload"),
    (["launcher=deepspeed", "launcher.zero=3", "model.quantizer=bnb_4bit"], "launcher.quantizer", "model.quantizer"),
    (["launcher=deepspeed", "training.offload_activations=true"], "launcher.activations",
     "training.offload_activations"),
    (["launcher=deepspeed", "model.precision=pure_bf16"], "launcher.pure", "model.precision"),
    (["launcher=deepspeed", "tuner=full", "optimizer=muon"], "launcher.optimizer", "optimizer"),
    (["launcher=fsdp2", "watching.best=true"], "launcher.watching", "watching.best"),
    (["launcher=deepspeed", "watching.samples=2"], "launcher.watching", "watching.samples"),
    (["launcher=fsdp2", "model.quantizer=bnb_8bit"], "launcher.quantizer", "model.quantizer"),
    (["launcher=fsdp2", "model.quantizer=bnb_4bit"], "launcher.storage", "model.quantizer.bnb_4bit.storage"),
    (["launcher=fsdp2", "hardware.device=cpu"], "launcher.gpus", "hardware.device"),
    ([DDP, "launcher.nodes=2"], "launcher.endpoint", "launcher.ddp.endpoint"),
    ([DDP, "launcher.nodes=2", "launcher.endpoint=somewhere"], "launcher.endpoint", "launcher.ddp.endpoint"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(settings: list[str], code: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        config.run(config.override(settings))
    assert (caught.value.code, caught.value.place) == (code, place)


def test_fsdp2_is_configured_and_needs_gpus(make: Callable[..., Path]) -> None:
    """Its configuration is what accelerate's plugin takes; without a GPU the run is refused, not turned into DDP."""
    launcher = config.run(
        config.override(["launcher=fsdp2", "launcher.offload=true", "launcher.keep_weights=true"])
    ).launcher
    made = TrainingArguments(output_dir="unused", use_cpu=True, **launcher.arguments())
    plugin = FullyShardedDataParallelPlugin(**(made.fsdp_plugin_args or {}))
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, False)
    assert type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy"
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    with pytest.raises(InputError) as caught:
        train(make("divided", "launcher=fsdp2", "hardware.device=auto"))
    assert (caught.value.code, caught.value.place) == ("launcher.gpus", "launcher")


def test_the_planner_divides_what_the_processes_divide(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr(room, "gpus", lambda: [(0.0, 0.0, 80_000.0, 40.0)] * 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sizes = {name: entry.shape for name, entry in tensors(tiny_model, "model.path").items()}
    known = Shapes(sizes, json.loads((tiny_model / "config.json").read_text()))

    def planned(device: str, *settings: str) -> Any:
        return plan(config.run(config.override(["tuner=full", *settings])), known, device)

    one, two = planned("cuda"), planned("cuda", DDP)
    assert one == two
    second, third = planned("cuda", "launcher=deepspeed"), planned("cuda", "launcher=deepspeed", "launcher.zero=3")
    assert (second.weights, second.gradients, second.optimizer) == (one.weights, one.gradients // 4, one.optimizer // 4)
    assert (third.weights, third.optimizer, third.activations) == (
        one.weights // 4,
        one.optimizer // 4,
        one.activations,
    )
    many = planned("cuda", "launcher=fsdp2", "launcher.nodes=2", "launcher.endpoint=a:29500")
    assert many.weights == one.weights // 8
    cpu, two = planned("cpu", "hardware.device=cpu"), planned("cpu", "hardware.device=cpu", DDP, "launcher.processes=2")
    assert two.peak == 2 * cpu.peak  # of one machine


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def test_two_machines_do_one_run(make: Callable[..., Path]) -> None:
    folder = make("wide", DDP, "launcher.nodes=2", f"launcher.endpoint=127.0.0.1:{free_port()}",
                  "training.batch_size=2", "training.max_steps=4", "data.eval_share=0")  # fmt: skip
    runs.launch(folder)
    runs.join(folder, 1)
    wait(lambda: not alive(folder))
    view = runs.look(folder)
    assert (view.status, view.state.step) == ("done", 4), (folder / "console.log").read_text()
    assert json.loads((folder / "exit-1.json").read_text())["cause"] == "done"
    assert len(of_type(folder, "end")) == 1
    with pytest.raises(InputError) as caught:
        runs.join(folder, 2)
    assert caught.value.code == "run.node"


def test_gpus_are_named_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "gpus", lambda: [(0.0, 0.0, 80_000.0, 40.0)] * 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    some = config.run(config.override([DDP, "hardware.devices=[1,3]"]))
    assert room.devices(some.hardware) == ["1", "3"] and room.chosen(some.hardware) == {"CUDA_VISIBLE_DEVICES": "1,3"}
    assert some.launcher.count(2) == 2
    monkeypatch.setattr(room, "gpus", lambda: [(0.0, used, 80_000.0, 40.0) for used in (0.0, 10.0, 5.0, 70.0)])
    assert room.room(some.hardware).free == (80_000 - 70) << 20
    every = config.run(config.override([DDP]))
    assert room.room(every.hardware).free == 80_000 << 20
    assert room.chosen(every.hardware) == {} and every.launcher.count(len(room.devices(every.hardware))) == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7,GPU-1")
    assert room.chosen(some.hardware) == {"CUDA_VISIBLE_DEVICES": "5,GPU-1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(InputError) as caught:
        preflight.check(some, ROOT)
    assert (caught.value.code, caught.value.params) == ("devices.absent", {"number": 1, "count": 1})
    with pytest.raises(InputError) as caught:
        preflight.check(config.run(config.override([DDP, "launcher.processes=2"])), ROOT)
    assert (caught.value.code, caught.value.place) == ("devices.few", "launcher")
