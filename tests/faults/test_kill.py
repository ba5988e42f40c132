"""Whoever is killed, and whenever: no process is left, the record is true, the last checkpoint is whole."""

import os
import random
import signal
import time

import psutil
import pytest

from core import checkpoints, config, runs

pytestmark = pytest.mark.faults


def wait(condition, seconds=90, every=0.05):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every)
    pytest.fail(f"waited {seconds} s in vain")


def processes(folder):
    """Return every process that was started for a run, by its command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if str(folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def worker(folder):
    return next((p for p in processes(folder) if "core.worker" in p.info["cmdline"]), None)


def step(folder):
    return runs.look(folder).state.step


@pytest.fixture
def launched(tiny_model, tiny_data, tmp_path):
    """A long run, launched: a checkpoint every 4 steps."""
    layer = {
        "name": "long",
        "model": {"path": str(tiny_model)},
        "data": {"folder": str(tiny_data), "train": ["orders"], "cutoff": 64, "eval_share": 0},
        "training": {"max_steps": 100_000, "epochs": 0, "batch_size": 2},
        "saving": {"every": 4, "keep": 2},
        "hardware": {"device": "cpu", "threads": 1, "grace": 10},
    }
    folder = runs.create(config.resolve(layer), tmp_path)
    runs.launch(folder)
    yield folder
    for process in processes(folder):
        process.kill()


def settled(folder):
    """Wait until nothing of a run is alive, and return its view."""
    wait(lambda: not processes(folder))
    return runs.look(folder)


def newest(folder):
    """Return the newest whole checkpoint; the store itself verifies every sum."""
    return checkpoints.newest_good(folder / "checkpoints")


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_worker_is_recorded_and_leaves_a_whole_checkpoint(launched, seed):
    wait(lambda: step(launched) >= 9)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    worker(launched).kill()
    view = settled(launched)
    assert (view.status, view.exit["signal"]) == ("killed", signal.SIGKILL)
    assert newest(launched)
    before = view.state.step
    runs.resume(launched)
    wait(lambda: step(launched) > before)
    runs.stop(launched)
    assert settled(launched).status == "stopped"


def test_a_killed_supervisor_takes_the_worker_along_with_its_work_saved(launched):
    wait(lambda: step(launched) >= 5)
    runs.supervisor(launched).kill()
    view = settled(launched)
    assert view.status in {"stopped", "lost"} and newest(launched)


def test_killing_both_at_once_leaves_nothing_but_a_whole_checkpoint(launched):
    wait(lambda: step(launched) >= 9)
    for process in processes(launched):
        os.kill(process.pid, signal.SIGKILL)
    assert settled(launched).status == "lost"
    assert newest(launched)


def test_stop_saves_and_leaves_no_process(launched):
    wait(lambda: step(launched) >= 2)
    runs.stop(launched)
    view = settled(launched)
    assert (view.status, view.exit["status"]) == ("stopped", 20)
    assert newest(launched).name == f"checkpoint-{view.state.step}"


def test_stop_before_anything_began_ends_it(launched):
    runs.stop(launched)
    view = settled(launched)
    assert view.status == view.exit["cause"] == "stopped"  # the supervisor lived to tell


def test_a_second_stop_ends_it_at_once(launched):
    wait(lambda: step(launched) >= 1)
    os.kill(worker(launched).pid, signal.SIGSTOP)  # a worker that can no longer hear
    runs.stop(launched)
    time.sleep(0.5)
    asked = time.monotonic()
    runs.stop(launched)
    assert settled(launched).status == "killed"
    assert time.monotonic() - asked < 5


def test_a_deaf_worker_is_killed_after_the_grace_period(launched, monkeypatch):
    wait(lambda: step(launched) >= 1)
    os.kill(worker(launched).pid, signal.SIGSTOP)
    runs.stop(launched)
    assert runs.look(launched).status == "stopping"
    assert settled(launched).status == "killed"


def test_a_run_whose_folder_is_deleted_ends(launched):
    wait(lambda: step(launched) >= 1)
    gone = launched.with_name("moved away")
    launched.rename(gone)
    wait(lambda: not processes(launched), seconds=60)


def test_an_active_run_is_neither_launched_twice_nor_deleted(launched):
    for refused in (runs.launch, runs.resume, runs.delete):
        with pytest.raises(runs.InputError) as raised:
            refused(launched)
        assert raised.value.code == "run.active"
