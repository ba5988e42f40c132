"""What goes wrong while a run learns, and what is told of it; what it leaves for people and trackers."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from app.show import problem
from core import config, preflight, relief, runs
from core.errors import InputError, OutOfMemory
from core.events import fold
from core.files import write_json
from core.forecast import forecast
from core.training.loggers import settings
from core.training.stall import Watchdog
from core.training.watch import Watch
from tests.conftest import ROOT
from tests.core.helpers import of_type, train
from tests.core.models_fixtures import context, told

MakeRun = Callable[..., Path]


def test_a_step_that_stalls_is_told_once_with_where_it_waits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with context(tmp_path) as job, Watchdog(job, least=0.3) as dog:
        for step in range(1, 4):  # a run at its usual pace
            dog.on_step_begin()
            time.sleep(0.02)
            dog.on_step_end(None, SimpleNamespace(global_step=step))
        assert told(job, "warning") == [] and 0.02 <= dog.usual < 0.2
        dog.on_step_begin()
        waits_here(0.8)
        (warning,) = told(job, "warning")
        assert warning["code"] == "run.stalled" and warning["params"]["step"] == 3
        dog.on_step_end(None, SimpleNamespace(global_step=4))  # it goes on, and stalls again
        waits_here(0.8)
        assert len(told(job, "warning")) == 2
    assert "in waits_here" in capfd.readouterr().err


def waits_here(seconds: float) -> None:
    time.sleep(seconds)


def test_a_step_may_take_many_times_the_least_if_that_is_usual(tmp_path: Path) -> None:
    with context(tmp_path) as job, Watchdog(job, least=0.05) as dog:
        for _ in range(2):
            dog.took.append(0.2)
        dog.on_step_begin()
        time.sleep(0.4)
        assert told(job, "warning") == []


@pytest.mark.parametrize(("losses", "refused"), [
    ([0.0, 0.0, 0.0], True), ([0.0, 0.0, 1.0, 0.0, 0.0, 0.0], False), ([1.0, 0.0, 0.0, 0.0, 0.0], False),
])  # fmt: skip
def test_a_loss_of_0_from_the_first_step_on_is_refused(tmp_path: Path, losses: list[float], refused: bool) -> None:
    control: Any = SimpleNamespace(should_save=False, should_training_stop=False)
    with context(tmp_path) as job:
        watch = Watch(job, config.run(), *[Any] * 3, None)
        seen: list[int] = []
        try:
            for step, loss in enumerate(losses, 1):
                logs = {"loss": loss, "learning_rate": 1e-4}
                watch._guard(logs, SimpleNamespace(global_step=step), control, skipped=False)
                seen.append(step)
        except InputError as error:
            assert (error.code, error.params) == ("loss.zero", {"count": 3})
    assert (len(seen) < len(losses)) == refused


@pytest.mark.parametrize(("losses", "refused"), [([0.0, 0.0, 0.0, 0.0, 1.0], False), ([0.0] * 5, True)])
def test_examples_of_no_weight_are_waited_out(tmp_path: Path, losses: list[float], refused: bool) -> None:
    control: Any = SimpleNamespace(should_save=False, should_training_stop=False)
    run = config.run(config.override(["stage=kto", "stage.liked_weight=0"]))
    with context(tmp_path) as job, pytest.raises(InputError) if refused else nullcontext():
        watch = Watch(job, run, *[Any] * 3, None)
        for step, loss in enumerate(losses, 1):
            state: Any = SimpleNamespace(global_step=step, max_steps=len(losses))
            watch._guard({"loss": loss, "learning_rate": 1e-4}, state, control, skipped=False)


@pytest.mark.parametrize(("steps", "moved"), [
    ([(math.nan, 0.0), (math.nan, 1e-4)], False), ([(1.0, 0.0), (math.nan, 1e-4)], False),
    ([(1.0, 0.0), (1.0, 1e-4), (math.nan, 2e-4)], True),
])  # fmt: skip
def test_a_learning_rate_is_blamed_for_a_loss_that_broke_only_once_weights_were_moved_by_it(
    tmp_path: Path, steps: list[tuple[float, float]], moved: bool
) -> None:
    control: Any = SimpleNamespace(should_save=False, should_training_stop=False)
    with context(tmp_path) as job:
        watch = Watch(job, config.run(), *[Any] * 3, None)
        for step, (loss, rate) in enumerate(steps, 1):
            logs = {"loss": loss, "learning_rate": rate}
            watch._guard(logs, SimpleNamespace(global_step=step), control, skipped=False)
    assert watch.broken and watch.moved == moved


TOO_LARGE = ["data.cutoff=65536", "training.batch_size=64", "tuner.kind=full"]


def test_when_memory_ends_the_cheapest_changes_are_told(tmp_path: Path) -> None:
    run = config.run(config.override(TOO_LARGE))
    before = forecast(run, tmp_path)
    for code in ("memory.device", "memory.host"):
        error = relief.relieve(OutOfMemory(code), run, tmp_path)
        assert error.code == f"{code}_fixes" and error.exit_code == 12
        patch = error.params["changes"][0]
        assert error.params["fixes"].startswith(" ".join(f"{key}={value}" for key, value in patch.items()))
        after = forecast(config.run(run.model_dump(), config.nest(patch)), tmp_path)
        assert before and after and after.plan.peak < before.plan.peak and after.plan.peak < before.room.total
        assert patch["training.batch_size"] * patch["training.accumulation"] == 64
    fits = config.run(config.override(["training.batch_size=1", "data.cutoff=64", "model.quantizer=bnb_4bit",
                                       "training.gradient_checkpointing=true"]))  # fmt: skip
    assert relief.relieve(OutOfMemory("memory.host"), fits, tmp_path).code == "memory.host"  # nothing is left to change


def test_a_run_killed_for_memory_is_told_what_helps(tmp_path: Path) -> None:
    folder = runs.create(config.run(config.override(TOO_LARGE)), tmp_path)
    command = [sys.executable, "-m", "core.relief", str(folder), str(3 << 30)]
    subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    write_json(folder / "exit.json", {"status": -9, "signal": 9, "cause": "out_of_memory", "peak_bytes": 3 << 30})
    found = problem(runs.look(folder))
    assert found and found.code == "memory.killed_fixes" and found.params["peak"] == "3.2 GB"
    assert "training.batch_size=" in str(found)


def test_trackers_stay_in_the_run_folder_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    ours = settings(tmp_path, {"MLFLOW_TRACKING_URI": "http://elsewhere"})
    assert ours["WANDB_MODE"] == "offline" and ours["SWANLAB_MODE"] == "offline" and "MLFLOW_TRACKING_URI" not in ours
    assert all(str(tmp_path) in ours[name] for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "TRACKIO_DIR"))
    assert settings(tmp_path, {"WANDB_API_KEY": "secret"})["WANDB_MODE"] == "online"
    assert "secret" not in str(settings(tmp_path, {"WANDB_API_KEY": "secret"}))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio", "swanlab"])
def test_a_tracker_that_is_not_installed_is_refused_by_name(
    make_run: MakeRun, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # find_spec takes it for absent
    with pytest.raises(InputError) as caught:
        preflight.check(config.run(config.override([f"watching.report_to=[{name}]"])), tmp_path)
    assert (caught.value.code, caught.value.place) == ("package.missing", "watching.report_to")
    assert caught.value.params == {"package": name}


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_the_curves_as_often_as_they_are_reported(make_run: MakeRun) -> None:
    folder = make_run("board", "watching.report_to=[tensorboard]", "training.log_every=2")
    train(folder)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    board.Reload()
    assert [point.step for point in board.Scalars("train/loss")] == [2, 4, 6, 8, 10]
    evals = {point.step: point.value for point in board.Scalars("eval/loss")}
    assert evals == pytest.approx({e["step"]: e["loss"] for e in of_type(folder, "eval")})


def test_results_show_every_set_and_whatever_a_stage_measured(make_run: MakeRun) -> None:
    from core.training import results

    folder = make_run("shown", "data.train=[chats]", "data.eval=[orders]", "training.max_steps=4",
                      "training.eval_every=2")  # fmt: skip
    metrics = train(folder)
    assert metrics["eval_orders_loss"] == of_type(folder, "eval")[-1]["loss"]
    heights = [_height(folder / "loss.png")]
    state = fold(folder)[0]
    for step in (3, 4):
        state.apply({**state.last, "step": step, "metrics": {"rewards/margins": 0.5 * step, "kl": 1.0}})
    assert results.write(folder, state)["rewards/margins"] == 2.0
    heights.append(_height(folder / "loss.png"))
    assert heights[1] > heights[0]  # a row of small curves came below
    assert [axes.get_title() for axes in results.draw(state).axes] == ["", "rewards/margins", "kl"]
    assert json.loads((folder / "metrics.json").read_text())["kl"] == 1.0


def _height(png: Path) -> int:
    return struct.unpack(">I", png.read_bytes()[20:24])[0]


@pytest.mark.parametrize(
    ("tuner", "saved", "library"), [("lora", "adapter", "peft"), ("full", "model", "transformers")]
)
def test_what_was_trained_explains_itself(make_run: MakeRun, tuner: str, saved: str, library: str) -> None:
    folder = make_run(f"card-{tuner}", f"tuner.kind={tuner}", "training.max_steps=2", "training.eval_every=1")
    metrics = train(folder)
    _, header, text = (folder / saved / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    told = yaml.safe_load(header)
    run = runs.settings(folder)
    assert told["library_name"] == library and told["base_model"] == run.model.path
    assert f"| Eval loss | {metrics['eval_loss']:.4g} |" in text and "| Data | orders |" in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["tuner"]["kind"] == tuner
    code = text.split("```python\n")[1].split("```")[0].replace("PATH OF THIS FOLDER", str(folder / saved))
    made: dict[str, Any] = {}
    exec(code, made)  # it does what it says
    assert made["model"](made["tokenizer"]("red pen", return_tensors="pt")["input_ids"]).logits.isfinite().all()
