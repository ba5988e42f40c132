"""A Ray cluster does a run as this machine does it: its events here, a stop that saves, a word on what went wrong."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from core import config, crew, preflight, runs
from core.errors import InputError
from core.forecast import forecast, unforeseen
from tests.core.helpers import of_type

MakeRun = Callable[..., Path]
RAY = find_spec("ray") is not None
LONG = ("training.max_steps=100000", "saving.every=5", "training.batch_size=2", "data.eval_share=0")


def wait(condition: Callable[[], Any], seconds: float = 200) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {seconds} s in vain")


def port() -> int:
    """Return a free port that Ray does not give to its workers (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number = probe.getsockname()[1]
        if number > 19999:
            return number


def answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/api/version", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    dashboard = port()
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head = ["start", "--head", "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--port={port()}", "--disable-usage-stats", "--block"]  # fmt: skip
    with (tmp_path_factory.mktemp("ray") / "log").open("wb") as log:
        process = subprocess.Popen([*ray, *head], stdout=log, stderr=log)
        address = f"http://127.0.0.1:{dashboard}"
        wait(lambda: answers(address))
        yield address
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.mark.parametrize(("settings", "code", "place"), [
    (["hardware.devices=[0]"], "cluster.devices", "hardware.devices"),
    (["launcher=ddp", "launcher.nodes=2", "launcher.endpoint=10.0.0.1:29500"], "cluster.nodes", "launcher.ddp.nodes"),
])  # fmt: skip
def test_what_a_cluster_does_not_do(settings: list[str], code: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        config.run(config.override(["hardware.cluster=http://10.0.0.1:8265", *settings]))
    assert (caught.value.code, caught.value.place) == (code, place)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "os.system://x", "http://a b", "10.0.0.1:8265"])
def test_an_address_is_one_of_the_web(address: str) -> None:
    with pytest.raises(InputError) as caught:  # Ray imports a module by the name before ://
        config.run(config.override([f"hardware.cluster={address}"]))
    assert caught.value.place == "hardware.cluster"


def test_a_chat_answers_from_here() -> None:
    with pytest.raises(InputError) as caught:
        config.resolve({"kind": "serving", "hardware": {"cluster": "http://10.0.0.1:8265"}})
    assert caught.value.code == "cluster.serving"


@pytest.mark.skipif(RAY, reason="Ray is installed")
def test_without_ray_it_is_said_what_is_missing(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("far", "hardware.cluster=http://127.0.0.1:8265")
    with pytest.raises(InputError) as caught:
        preflight.check(runs.settings(folder), folder.parents[1])
    assert (caught.value.code, caught.value.place) == ("package.missing", "hardware.cluster")
    runs.launch(folder)  # as a queue does that was filled on another machine
    view = wait(lambda: (view := runs.look(folder)).exit and view)
    assert (view.status, view.exit["status"], view.state.error["code"]) == ("failed", 2, "package.missing")


def test_processes_far_away_save_when_told_and_end_when_nobody_is_at_home(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run("crew", *LONG)
    far = subprocess.Popen([sys.executable, "-m", "core.crew", str(folder), "60", "{}"], env=runs.environment())
    wait(lambda: runs.look(folder).state.step >= 3)
    far.terminate()
    assert far.wait(60) == 20
    stopped_at = runs.look(folder).state.step
    assert (folder / "checkpoints" / f"checkpoint-{stopped_at}").exists()

    monkeypatch.setattr(crew, "LOST", 0.0)
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert crew.main(folder, 60, "{}") in (20, 128 + signal.SIGTERM)  # saved, or not begun yet
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(not RAY, reason="the extra ray is not installed")
def test_a_cluster_does_a_run_stops_it_and_goes_on(make_run: MakeRun, cluster: str) -> None:
    nobody = make_run("nobody", f"hardware.cluster=http://127.0.0.1:{port()}")
    runs.launch(nobody)
    view = wait(lambda: (view := runs.look(nobody)).exit and view)
    assert (view.exit["status"], view.state.error["code"]) == (2, "cluster.unreachable")

    far = f"hardware.cluster={cluster}"
    here, there = make_run("here"), make_run("there", far)
    runs.launch(here)
    wait(lambda: runs.look(here).exit)
    runs.launch(there)
    view = wait(lambda: (view := runs.look(there)).exit and view)
    assert view.status == "done", (there / "console.log").read_text()
    assert [e["loss"] for e in of_type(there, "step")] == [e["loss"] for e in of_type(here, "step")]
    assert "step 1/" in (there / "console.log").read_text()  # what is printed there is read here

    long = make_run("long", far, *LONG)
    runs.launch(long)
    wait(lambda: runs.look(long).state.step >= 6)
    runs.stop(long)
    view = wait(lambda: (view := runs.look(long)).exit and view)
    assert (view.status, view.exit["status"]) == ("stopped", 20)
    assert (long / "checkpoints" / f"checkpoint-{view.state.step}").exists()
    stopped_at = view.state.step
    runs.resume(long)
    wait(lambda: runs.look(long).state.step >= stopped_at + 3)
    runs.stop(long)
    # again, until it is heard (two signals at once may be one): here all is over, the cluster goes on for a while
    assert wait(lambda: runs.stop(long) or runs.look(long).exit)["cause"] == "killed"
    runs.resume(long)  # the job before saves and ends first
    wait(lambda: len(of_type(long, "started")) == 3)
    reached = runs.look(long).state.step
    wait(lambda: runs.look(long).state.step >= reached + 3)
    runs.stop(long)
    wait(lambda: runs.look(long).exit)
    assert [event["cause"] for event in of_type(long, "end")] == ["stopped"] * 3
    steps = [event["step"] for event in of_type(long, "step")]
    assert steps == sorted(set(steps))  # none was done twice


def test_the_memory_of_a_cluster_is_not_known(make_run: MakeRun) -> None:
    folder = make_run("far", "hardware.cluster=http://10.0.0.1:8265")
    job = runs.settings(folder)
    assert isinstance(job, config.Run) and forecast(job, folder.parents[1]) is None
    assert unforeseen(job, folder.parents[1]).code == "memory.cluster"
