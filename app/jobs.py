"""What the command line and the tabs both do with jobs: start one, find tuned models, their base, a running server."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from core import config, preflight, queue, runs
from core.errors import InputError
from core.models.inspect import inspect_adapter
from core.workspace import tuned


def start(job: config.Job, workspace: Path) -> Path:
    """Make a run folder for a job and launch it, detached; return the folder.

    Raises InputError for what can be seen to be wrong at once; nothing is made then.
    """
    preflight.check(job, workspace)
    folder = runs.create(job, workspace)
    runs.launch(folder)
    return folder


def enqueue(job: config.Job, workspace: Path) -> Path:
    """Make a run folder for a training and put it at the end of the queue; return the folder.

    Raises InputError for what can be seen to be wrong at once; nothing is made then.
    """
    preflight.check(job, workspace)
    folder = runs.create(job, workspace)
    queue.add([folder], workspace)
    return folder


def settings(folder: Path) -> config.Job:
    """Return the job of a run folder; the frozen file is read once."""
    return _settings(folder, (folder / "run.yaml").stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _settings(folder: Path, written: int) -> config.Job:
    return runs.settings(folder)


def of_kind(kind: str, workspace: Path) -> list[Path]:
    """Return the folders of all runs of one kind of job, newest first; one that can't be read is passed over."""
    found = []
    for folder in runs.listed(workspace):
        try:
            if settings(folder).kind == kind:
                found.append(folder)
        except (InputError, FileNotFoundError):
            continue  # written by another version, or deleted just now
    return found


def tuned_runs(workspace: Path) -> list[str]:
    """Return the names of the runs that left tuned weights, newest first."""
    return [f.name for f in runs.listed(workspace) if (f / "adapter").is_dir() or (f / "model").is_dir()]


def trained(folder: Path) -> config.Run | None:
    """Return the settings of a training run; None for other runs, and for one that can't be read."""
    try:
        job = settings(folder)
    except (InputError, FileNotFoundError):
        return None  # written by another version, or deleted just now
    return job if isinstance(job, config.Run) else None


def base(reference: str, workspace: Path) -> dict[str, Any]:
    """Return the `model` settings that a run or an adapter folder was tuned from; {} where the folder does not tell."""
    if (workspace / "runs" / reference / "run.yaml").is_file():
        job = settings(workspace / "runs" / reference)
        model = job.model.model_dump() | {"add_tokens": [], "add_special_tokens": []}  # what is tuned brings them
        if isinstance(job, config.Run) and job.model.rope != "none":
            model["context"] = job.model.context or job.data.cutoff
        return model
    folder = tuned(reference, workspace)
    if not (folder / "adapter_config.json").is_file():
        return {}
    name = inspect_adapter(folder).base
    return {"path": name} if name else {}


def server(job: config.Serving, workspace: Path) -> Path | None:
    """Return the run folder of a server that is alive or coming up with the line-up of a job, or None."""
    for folder in of_kind("serving", workspace):
        running = settings(folder)
        same = isinstance(running, config.Serving) and (running.model, running.tuned) == (job.model, job.tuned)
        if same and runs.look(folder).status in ("starting", "running"):
            return folder
    return None
