"""What the command line tells of a run that has ended, and of its last loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.cli_follow import finish
from app.cli_runs import list_
from app.cli_speak import Answer
from core import config, runs
from core.events import Writer
from core.files import write_json


def ended(workspace: Path, cause: str, *events: dict[str, Any]) -> Path:
    """Return the folder of a run that has told this and ended so."""
    folder = runs.create(config.resolve({"name": "ended", "optimizer": {"learning_rate": 0.5}}), workspace)
    writer = Writer(folder)
    writer.write("started", job="train")
    for event in events:
        writer.write(event["type_"], **{name: value for name, value in event.items() if name != "type_"})
    writer.close()
    write_json(folder / runs.EXIT, {"status": 13, "signal": None, "cause": cause, "ended": 1.0})
    return folder


def test_the_last_loss_is_that_of_the_training_whatever_was_measured_last(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [
        {"type_": "step", "step": n, "total": 2, "loss": loss} for n, loss in ((1, 2.0), (2, 1.0))
    ]
    folder = ended(tmp_path, "done", *steps, {"type_": "eval", "step": 2, "loss": 9.0, "seconds": 0.1})
    list_(tmp_path, answer := Answer(as_json=True))
    assert [(row["name"], row["loss"]) for row in answer.fields["runs"]] == [(folder.name, 1.0)]


@pytest.mark.parametrize(("cause", "checkpoint", "anew"), [
    ("nan", False, True), ("nan", True, False), ("killed", False, False),
])  # fmt: skip
def test_a_run_that_broke_before_its_first_checkpoint_is_to_be_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cause: str, checkpoint: bool, anew: bool
) -> None:
    folder = ended(tmp_path, cause)
    if checkpoint:
        (folder / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    finish(folder, detach=False, answer=Answer(as_json=False))
    told = capsys.readouterr().err
    assert ("tuneboard runs resume ended" in told) != anew and ("Go on with" in told) == checkpoint
    assert (f"tuneboard train {folder / 'run.yaml'} optimizer.learning_rate=0.05" in told) == anew


def test_no_other_learning_rate_is_advised_where_none_can_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {"count": 3, "step": 3}
    folder = ended(tmp_path, "nan", {"type_": "error", "code": "loss.never_finite", "place": "", "params": params})
    finish(folder, detach=False, answer=Answer(as_json=False))
    told = capsys.readouterr().err
    assert f"tuneboard train {folder / 'run.yaml'}" in told and "optimizer.learning_rate" not in told
