"""The queue on real folders and real runs: its order, who starts what, and what is left when somebody is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core import config, queue, runs, slots, supervisor
from core.errors import InputError
from core.events import tail
from core.files import read_json, write_json
from core.models import consent, room

ROOT = Path(__file__).resolve().parents[2]
SEVERAL = """
import sys
from pathlib import Path
from core import config, queue, runs
workspace, name = Path(sys.argv[1]), sys.argv[2]
for _ in range(20):
    queue.add([runs.create(config.resolve({"name": name}), workspace)], workspace)
"""


@pytest.fixture
def make(tiny_model: Path, tiny_data: Path, workspace: Path) -> Iterator[Callable[..., Path]]:
    """`make("name", "training.max_steps=4")`: a run of the tiny model, created; what was started ends with the test."""

    def create(name: str, *settings: str) -> Path:
        base = {
            "name": name,
            "model": {"path": str(tiny_model), "precision": "fp32"},
            "data": {"folder": str(tiny_data), "train": ["orders"], "cutoff": 64, "eval_share": 0},
            "training": {"max_steps": 3, "epochs": 0, "batch_size": 2},
            "hardware": {"device": "cpu", "threads": 1, "grace": 5},
        }
        return runs.create(config.resolve(base, config.override(settings)), workspace)

    yield create
    for process in psutil.process_iter(["cmdline"]):
        if any(str(workspace) in word for word in process.info["cmdline"] or []):
            process.kill()


def names(workspace: Path) -> list[str]:
    return [folder.name for folder in runs.waiting(workspace)]


def until(condition: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def started(folder: Path) -> list[float]:
    """Return when the engine of a run came up, each time that it did."""
    return [event["time"] for event in tail(folder) if event["type"] == "started"]


def statuses(*folders: Path) -> list[str]:
    return [runs.look(folder).status for folder in folders]


def worker(workspace: Path) -> psutil.Process | None:
    """Return the process that starts what waits."""
    return runs.living(workspace / ".tuneboard" / "queue.process.json")


def spoil(folder: Path) -> None:
    """Let the settings of a run be those of another version: whoever wants to start it fails."""
    (folder / "run.yaml").chmod(0o600)
    (folder / "run.yaml").write_text("soup: 1\n")


def occupy(folder: Path, gpus: str | None = None) -> None:
    """Let a run look as if it lived: its supervisor is this process."""
    write_json(folder / runs.PROCESS, supervisor.signature(os.getpid()) | {"launched": 0.0, "gpus": gpus})


def test_the_order_is_that_of_a_list_however_often_it_is_changed(workspace: Path) -> None:
    queue.pause(workspace)
    folders = [runs.create(config.resolve({"name": "a"}), workspace) for _ in range(5)]
    queue.add(folders, workspace)
    model, chance = [folder.name for folder in folders], random.Random(0)
    assert [runs.look(folder).position for folder in folders] == [1, 2, 3, 4, 5] and names(workspace) == model
    for _ in range(300):
        name, to = chance.choice(model), chance.randint(1, 7)
        queue.move(workspace / "runs" / name, to)
        model.remove(name)
        model.insert(to - 1, name)
        assert names(workspace) == model
    for _ in range(120):  # always the same gap: it would be halved until no number is left in it
        queue.move(workspace / "runs" / model[2], 2)
        model[1], model[2] = model[2], model[1]
    assert names(workspace) == model


def test_a_run_leaves_the_queue_and_keeps_its_folder(workspace: Path) -> None:
    queue.pause(workspace)
    one, two = (runs.create(config.resolve({"name": "a"}), workspace) for _ in range(2))
    queue.add([one, two, one], workspace)
    assert statuses(one, two) == ["queued", "queued"] and names(workspace) == ["a", "a-2"]
    queue.drop(one)
    assert statuses(one, two) == ["new", "queued"] and runs.look(two).position == 1
    for wrong in (lambda: queue.drop(one), lambda: queue.move(one, 1)):
        with pytest.raises(InputError) as raised:
            wrong()
        assert raised.value.code == "queue.absent"
    runs.delete(two)
    assert names(workspace) == []


def test_what_may_not_wait_is_refused(workspace: Path) -> None:
    queue.pause(workspace)
    done, active, other = (runs.create(config.resolve(layer), workspace) for layer in ({}, {}, {"kind": "export"}))
    write_json(done / runs.EXIT, {"cause": "done"})
    occupy(active)
    for folder, code in ((done, "run.complete"), (active, "run.active"), (other, "run.not_training")):
        with pytest.raises(InputError) as raised:
            queue.add([folder], workspace)
        assert raised.value.code == code and names(workspace) == []


@pytest.mark.parametrize("room", [True, False])
def test_a_full_disk_is_named_and_takes_a_run_off_the_queue(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """Where there is no room even for the words, the queue goes on without them."""
    queue.pause(workspace)
    folder = runs.create(config.resolve({}), workspace)
    queue.add([folder], workspace)
    full = OSError(errno.ENOSPC, "No space left on device")
    if not room:

        def refuse(path: Path, value: Any) -> None:
            raise full

        monkeypatch.setattr(queue, "write_json", refuse)
    queue._refuse(folder, full)
    assert names(workspace) == [] and [e["code"] for e in tail(folder) if e["type"] == "error"] == ["disk.write"]
    assert (runs.look(folder).status == "failed") == room


def test_rules_are_checked_and_unreadable_ones_start_nothing(workspace: Path) -> None:
    assert queue.rules(workspace) == queue.Rules()
    for wrong in ({"on_error": "cry"}, {"at_once": 0}, {"at_once": 17}, {"sooner": True}):
        with pytest.raises(InputError) as raised:
            queue.rule(workspace, **wrong)
        assert raised.value.code == "queue.rule"
    assert queue.rule(workspace, at_once=2, on_error="stop") == queue.rules(workspace)
    (workspace / ".tuneboard" / "queue.json").write_text('{"paused": fal')
    assert queue.rules(workspace).paused


def test_two_who_add_at_once_lose_nothing(workspace: Path) -> None:
    queue.pause(workspace)
    command = [sys.executable, "-c", SEVERAL, str(workspace)]
    both = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(set(runs.waiting(workspace).values())) == 40  # no place twice
    for name in ("one", "two"):
        mine = [found for found in names(workspace) if found.startswith(name)]
        assert mine == [name, *(f"{name}-{number}" for number in range(2, 21))]


def test_of_two_who_launch_at_once_one_is_refused(make: Callable[..., Path]) -> None:
    folder = make("once")
    runs.launch(folder)
    with pytest.raises(InputError) as raised:
        runs.launch(folder)
    assert raised.value.code == "run.active"
    until(lambda: started(folder))
    runs.stop(folder)
    runs.stop(folder)  # at once
    until(lambda: not runs.look(folder).active)
    assert len(started(folder)) == 1


def test_a_supervisor_whose_starter_died_at_once_is_known_and_takes_its_run_off(make: Callable[..., Path]) -> None:
    folder = make("orphan")
    spoil(folder)
    write_json(folder / supervisor.QUEUED, {"place": 1.0})
    # a starter that is killed right after the fork writes nothing down itself
    child = subprocess.Popen([sys.executable, "-m", "core.supervisor", str(folder), "5"], cwd=ROOT)
    until(lambda: read_json(folder / runs.PROCESS).get("pid") == child.pid)
    until(lambda: not (folder / supervisor.QUEUED).exists())
    assert child.wait(60) == 0 and runs.look(folder).status == "failed"


def test_a_run_of_another_version_says_why_and_holds_nobody_up(workspace: Path) -> None:
    old = runs.create(config.resolve({"name": "old"}), workspace)
    queue.pause(workspace)
    queue.add([old], workspace)
    spoil(old)
    write_json(workspace / ".tuneboard" / "queue.json", {"paused": False})
    queue.advance(workspace)
    view = runs.look(old)
    assert (view.status, names(workspace)) == ("failed", []) and view.state.error
    assert view.state.error["code"] == "config.unknown_key"


def test_a_direct_run_holds_its_device_and_a_waiting_one_stays(make: Callable[..., Path], workspace: Path) -> None:
    direct, waits = make("direct"), make("waits")
    occupy(direct)
    queue.add([waits], workspace)
    until(lambda: worker(workspace))
    time.sleep(3 * queue.SECONDS)
    assert statuses(waits) == ["queued"] and slots.taken(workspace) == {"cpu": ["direct"]}
    queue.pause(workspace)  # with nothing to do it ends by itself
    until(lambda: worker(workspace) is None, 10)
    assert not queue.asleep(workspace)


def test_each_gpu_is_a_slot(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '3, 10, 81920, 40'\necho '5, 10, 81920, 41'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for cached in (room._smi, slots.gpus, slots._wanted):
        cached.cache_clear()
    try:
        layers: list[dict[str, Any]] = [{}, {"hardware": {"device": "cpu"}}, {"kind": "serving"}, {}]
        first, cpu, chat, more = (runs.create(config.resolve(layer), workspace) for layer in layers)
        assert slots.wanted(first) == slots.Wish(("0", "1")) and slots.wanted(cpu) == slots.Wish(("cpu",))
        occupy(first)  # started directly: torch takes the first
        assert slots.free(slots.wanted(more), slots.taken(workspace), 1) == ("1",)
        occupy(chat, gpus="1")
        assert slots.taken(workspace) == {"0": ["run"], "1": ["chat"]}
        assert slots.free(slots.wanted(more), slots.taken(workspace), 1) == ()
        assert slots.free(slots.wanted(more), slots.taken(workspace), 2) == ("0",)
        assert slots.free(slots.wanted(cpu), slots.taken(workspace), 1) == ("cpu",)
        both, second = {"launcher": {"kind": "ddp"}}, {"hardware": {"devices": [1]}}
        large, named = (slots.wanted(runs.create(config.resolve(layer), workspace)) for layer in (both, second))
        assert large == slots.Wish(("0", "1"), 2) and named == slots.Wish(("1",))
        assert slots.free(large, {"0": ["run"]}, 1) == () and slots.free(large, {}, 1) == ("0", "1")
        assert slots.free(named, {"0": ["run"]}, 1) == ("1",) and slots.free(named, {}, 1, closed={"1"}) == ()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        slots.gpus.cache_clear()
        assert slots.gpus() == ("1",)
    finally:
        for cached in (slots.gpus, slots._wanted, room._smi):
            cached.cache_clear()


def test_the_consent_of_whoever_adds_a_run_goes_with_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.pause(workspace)
    plain, trusted = (runs.create(config.resolve({}), workspace) for _ in range(2))
    queue.add([plain], workspace)
    monkeypatch.setenv(consent.FLAG, "1")
    queue.add([trusted], workspace)
    marks = [read_json(folder / supervisor.QUEUED)["remote_code"] for folder in (plain, trusted)]
    assert marks == [False, True]


def test_killed_in_the_middle_it_goes_on_in_order_and_starts_nothing_twice(
    make: Callable[..., Path], workspace: Path
) -> None:
    long, second = make("long", "training.max_steps=100000"), make("second")
    queue.add([long, second], workspace)
    until(lambda: started(long))
    working = worker(workspace)
    assert working and statuses(second) == ["queued"]
    working.kill()
    until(lambda: queue.asleep(workspace))
    assert statuses(long, second) == ["running", "queued"]  # the run itself goes on
    engine = next(
        p for p in psutil.process_iter(["cmdline"]) if {"core.worker", str(long)} <= set(p.info["cmdline"] or [])
    )
    engine.send_signal(signal.SIGKILL)
    until(lambda: runs.look(long).status == "killed")
    third = make("third")
    two = "import sys; from pathlib import Path; from core import queue; w = Path(sys.argv[1])\n"
    two += "queue.add([w / 'runs' / 'third'], w)"
    both = [subprocess.Popen([sys.executable, "-c", two, str(workspace)], cwd=ROOT) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    until(lambda: started(third))
    assert statuses(second) == ["done"] and names(workspace) == []
    assert [len(started(folder)) for folder in (long, second, third)] == [1, 1, 1]
    ended = [read_json(folder / runs.EXIT)["ended"] for folder in (long, second)]
    assert ended[0] < started(second)[0] and ended[1] < started(third)[0]


def test_the_first_error_stops_a_queue_that_is_to_stop(make: Callable[..., Path], workspace: Path) -> None:
    bad, good = make("bad"), make("good")
    queue.rule(workspace, on_error="stop", paused=True)
    queue.add([bad, good], workspace)
    spoil(bad)
    queue.go_on(workspace)
    until(lambda: queue.rules(workspace).paused)
    assert (queue.rules(workspace).because, statuses(bad, good)) == ("bad", ["failed", "queued"])
    until(lambda: worker(workspace) is None, 10)
    queue.rule(workspace, on_error="continue")
    queue.go_on(workspace)
    until(lambda: started(good))
    assert queue.rules(workspace).because == "" and started(bad) == []
