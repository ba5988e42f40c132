"""How long an epoch takes, by what earlier runs of the workspace did: their tokens a second, their tokens an epoch."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from app.jobs import of_kind, settings
from core import runs
from core.config import Run
from core.runs import View

UNTIMED = {"epochs", "max_steps", "schedule", "warmup", "clip", "eval_every", "log_every", "seed", "nan_patience"}
"""Settings of the training that change no step's time."""
LOOKED_AT = 50
"""Newest runs that are looked at."""


def seconds_an_epoch(run: Run, workspace: Path) -> float | None:
    """Return the seconds; None until a run with the same model and method, and one with the same data, are known."""
    speed = tokens = None
    for folder in of_kind("train", workspace)[:LOOKED_AT]:
        earlier = settings(folder)
        if not isinstance(earlier, Run):
            continue
        if speed is None and _works_alike(run, earlier):
            speed = _speed(runs.look(folder))
        if tokens is None and _reads_alike(run, earlier):
            tokens = _tokens(runs.look(folder))
        if speed and tokens:
            return tokens / speed
    return None


def _works_alike(run: Run, other: Run) -> bool:
    """Return whether a step of both computes the same."""
    return _work(run) == _work(other)


def _work(run: Run) -> dict[str, Any]:
    """Return the settings on which the pace of a run rests."""
    kept = {"model": True, "tuner": True, "hardware": True, "launcher": True, "optimizer": {"kind"},
            "data": {"cutoff", "packing"}, "training": set(type(run.training).model_fields) - UNTIMED}  # fmt: skip
    return run.model_dump(include=kept)


def _reads_alike(run: Run, other: Run) -> bool:
    """Return whether both learn the same tokens."""
    return (run.model.path, run.data, run.stage) == (other.model.path, other.data, other.stage)


def _speed(view: View) -> float | None:
    """Return the tokens a second that a run reached."""
    values = [value for _, value, *_ in view.state.curves["tokens_per_second"].bins]
    return median(values) if values else None


def _tokens(view: View) -> float | None:
    """Return the tokens of one epoch of a run."""
    seen, epoch = view.state.last.get("tokens"), view.state.last.get("epoch")
    return seen / epoch if seen and epoch else None
