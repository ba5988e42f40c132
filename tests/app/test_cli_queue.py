"""`tuneboard queue`, `train --queue` and `train --sweep`: what they make, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import main
from core import queue, runs


def ask(*words: Any, language: str = "C.UTF-8") -> Any:
    return CliRunner().invoke(main, [str(word) for word in words], env={"LC_ALL": language})


def told(*words: Any) -> dict[str, Any]:
    """Return the one JSON object that a command prints."""
    done = ask(*words, "--json")
    assert done.stdout.count("\n") == 1, done.output
    return json.loads(done.stdout)


@pytest.fixture
def paused(tmp_path: Path) -> Path:
    """A workspace whose queue starts nothing."""
    queue.pause(tmp_path)
    return tmp_path


def test_a_sweep_is_made_listed_moved_and_dropped(paused: Path) -> None:
    place = ["-w", paused]
    made = told("train", "name=lr", "-s", "optimizer.learning_rate=1e-4,3e-4", "-s", "tuner.rank=8,16", *place)
    assert made["sweep"] == "lr" and [Path(run["run"]).name for run in made["runs"]] == [
        f"lr-{n}" for n in (1, 2, 3, 4)
    ]
    assert made["runs"][2]["values"] == {"optimizer.learning_rate": 3e-4, "tuner.rank": 8}
    assert told("queue", *place)["waiting"] == ["lr-1", "lr-2", "lr-3", "lr-4"]
    for words, order in (
        (["move", "lr-4"], "4123"),
        (["move", "lr-4", "down"], "1423"),
        (["move", "lr-3", "up"], "1432"),
        (["move", "lr-1", "last"], "4321"),
        (["move", "lr-1", "2"], "4132"),
        (["drop", "lr-1"], "432"),
        (["add", "lr-1"], "4321"),
    ):
        assert told("queue", *words, *place)["waiting"] == [f"lr-{n}" for n in order], words
    listed = {run["name"]: (run["status"], run["position"]) for run in told("runs", *place)["runs"]}
    assert listed == {f"lr-{n}": ("queued", place) for n, place in ((4, 1), (3, 2), (2, 3), (1, 4))}
    assert "queued 1" in ask("runs", *place).stdout
    table = told("runs", "sweep", "lr-2", *place)
    assert table["sweep"] == "lr" and [row["number"] for row in table["runs"]] == [1, 2, 3, 4]
    printed = ask("runs", "sweep", "lr", *place).stdout
    assert "tuner.rank" in printed and "lr-4" in printed and "Training loss, smoothed" in printed


def test_runs_that_wait_for_a_dead_process_are_told_with_what_wakes_it(paused: Path) -> None:
    assert ask("train", "name=one", "--queue", "-w", paused).exit_code == 0
    assert "nobody starts them" not in ask("runs", "-w", paused).stderr  # nobody shall
    queue._rule(paused, paused=False)
    done = ask("runs", "-w", paused)
    assert "nobody starts them" in done.stderr and "tuneboard queue" in done.stderr and "one" in done.stdout
    assert "некому" in ask("runs", "-w", paused, language="ru_RU.UTF-8").stderr
    with queue.edited(paused):  # so that it starts nothing meanwhile
        queue.wake(paused)
        assert "nobody starts them" not in ask("runs", "-w", paused).stderr  # though it has only just been woken
        process = runs.living(paused / queue.STATE / queue.WORKER)
        assert process
        process.kill()


def test_rules_are_set_and_told(paused: Path) -> None:
    found = told("queue", "--on-error", "stop", "--at-once", 3, "-w", paused)
    assert (found["on_error"], found["at_once"], found["paused"]) == ("stop", 3, True)
    assert "paused" in ask("queue", "-w", paused).stderr
    assert not told("queue", "continue", "-w", paused)["paused"]
    assert told("queue", "pause", "-w", paused)["paused"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["train", "-s", "tuner.rank=8,0"], "sweep.cell", "tuner.rank=0"),
        (["train", "-s", "tuner.rnk=8"], "sweep.cell", "“rank”"),
        (["train", "-s", "tuner.rank"], "sweep.empty", "learning_rate"),
        (["train", "-s", "tuner.rank=" + ",".join(map(str, range(1, 66)))], "sweep.too_many", "65"),
        (["train", "kind=export", "-q"], "config.job", "train"),
        (["queue", "burn"], "cli.action", "move"),
        (["queue", "drop", "nope"], "run.unknown", "nope"),
        (["runs", "sweep", "nope"], "run.unknown", "nope"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_made(paused: Path, words: list[str], code: str, text: str) -> None:
    done = ask(*words, "-w", paused)
    assert done.exit_code == 2 and done.stderr.startswith(code) and text in done.stderr
    assert runs.listed(paused) == []


def test_a_lone_run_waits_and_an_odd_place_is_refused(paused: Path) -> None:
    assert ask("train", "name=one", "--queue", "-w", paused).exit_code == 0
    done = ask("queue", "move", "one", "sideways", "-w", paused)
    assert done.exit_code == 2 and "queue.place" in done.stderr
    assert "sweep.unknown" in ask("runs", "sweep", "one", "-w", paused).stderr
    assert "очеред" in ask("queue", "-w", paused, language="ru_RU.UTF-8").stderr.lower()
