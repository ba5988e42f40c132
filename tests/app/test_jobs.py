"""What the tabs and the command line both do with jobs."""

from __future__ import annotations

from pathlib import Path

from app.jobs import base
from core import config, runs


def test_the_base_of_a_run_comes_without_new_tokens_which_the_adapter_brings(workspace: Path) -> None:
    job = config.run(config.override(["model.add_tokens=[new]", "model.rope=linear", "data.cutoff=1024"]))
    folder = runs.create(job, workspace)
    found = base(folder.name, workspace)
    assert (found["add_tokens"], found["add_special_tokens"]) == ([], [])
    assert (found["path"], found["rope"], found["context"]) == (job.model.path, "linear", 1024)
