"""What is known of a model before a weight of it is read, by its folder or by the registry, and what suits it. Cold."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from core import config
from core.config import Run
from core.errors import InputError
from core.models import registry
from core.models.inspect import ModelFacts, describe
from core.models.registry import Entry
from core.workspace import HUB_ID, locate

TINY, HIGH = 50_000_000, 4
"""Weights above which a model was taught much that large steps would undo; how much larger than usual that is."""
Stamp = tuple[tuple[str, int, int], ...]
"""Name, size and time of what a folder holds: who looks again sees a change."""


def about(path: str, workspace: Path) -> ModelFacts | Entry | None:
    """Return what a folder says of its model, else what the registry does of a hub id; None where neither does.

    Raises InputError at model.path for a folder that is missing, or that can't be read.
    """
    try:
        folder = locate(path, workspace, "model.path")
    except InputError:
        if not HUB_ID.fullmatch(path):
            raise
        return registry.named(path)
    return _described(folder, stamp(folder))


def suits(run: Run, workspace: Path) -> dict[str, Any]:
    """Return the settings that suit the model of a run and that it does not have: key -> value."""
    entry = registry.named(run.model.path)
    try:
        known = about(run.model.path, workspace)
    except InputError:
        known = entry
    wanted: dict[str, Any] = dict(setting.split("=", 1) for setting in entry.settings) if entry else {}
    own_template = isinstance(known, ModelFacts) and known.chat_template
    if entry and entry.template and run.data.template == "auto" and not own_template:
        wanted["data.template"] = entry.template
    if known and known.context and run.model.rope == "none" and run.data.cutoff > known.context:
        wanted["data.cutoff"] = known.context
    usual = run.optimizer.bears * run.tuner.usual_rate
    if _weights(known) > TINY and run.optimizer.learning_rate > HIGH * usual:
        wanted["optimizer.learning_rate"] = usual
    own = run.model_dump()
    return {key: value for key, value in wanted.items() if config.run(own, config.nest({key: value})) != run}


def _weights(known: ModelFacts | Entry | None) -> float:
    """Return about how many weights a model has; 0 where nobody knows."""
    return 1e9 * (known.parameters or 0) if isinstance(known, Entry) else known.parameters if known else 0


def stamp(folder: Path) -> Stamp:
    """Return what tells whether anything in a model folder was written since; nothing of what is no folder."""
    if not folder.is_dir():
        return ()
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


@lru_cache(maxsize=64)
def _described(folder: Path, written: Stamp) -> ModelFacts:
    return describe(folder)
