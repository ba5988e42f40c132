"""What the `pick` fields offer: models, data folders, sets and tuned weights found in the workspace and bundled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from app.jobs import trained, tuned_runs
from core import templates
from core.data.describe import sets
from core.errors import InputError
from core.models import registry
from core.sections import DEMO_DATA, DEMO_MODEL
from core.workspace import jailed

DEPTH = 3
MOST = 200
"""Folders offered at most: a picker is no file manager."""


def offers(pick: str, workspace: Path, allowed: tuple[Path, ...] = (), folder: str = DEMO_DATA) -> list[str]:
    """Return what a field of this kind of pick offers; `folder` is the data folder whose sets are meant."""
    if pick == "model":
        known = (entry.id for entry in registry.entries() if entry.type)
        return [DEMO_MODEL, *_with("config.json", workspace, allowed), *known]
    if pick == "data":
        return [DEMO_DATA, *_with("dataset_info.json", workspace, allowed)]
    if pick == "set":
        return _sets(folder, workspace, allowed)
    if pick == "template":
        return templates.names()
    if pick == "tuned":
        return tuned_runs(workspace)[:MOST]
    if pick == "judge":
        return [name for name in tuned_runs(workspace) if _judges(workspace / "runs" / name)][:MOST]
    return []


def _judges(folder: Path) -> bool:
    run = trained(folder)
    return run is not None and run.stage.kind == "rm"


def _sets(folder: str, workspace: Path, allowed: tuple[Path, ...]) -> list[str]:
    """Return the names of the usable sets of a data folder; none where it can't be read (Start says why)."""
    try:
        return [found.name for found in sets(jailed(folder, workspace, allowed)) if not found.problem][:MOST]
    except (InputError, OSError):
        return []


def _with(name: str, workspace: Path, allowed: tuple[Path, ...]) -> list[str]:
    """Return the folders that hold a file of this name, as the settings write them."""
    found = [str(folder.relative_to(workspace)) for folder in _walk(workspace, name, DEPTH)]
    found += [str(folder) for root in allowed for folder in _walk(root, name, DEPTH)]
    return found[:MOST]


def _walk(root: Path, name: str, depth: int) -> Iterator[Path]:
    """Yield the folders below root that hold a file of this name, hidden ones and runs passed over."""
    try:
        children = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return
    for child in children:
        if child.name in ("runs", "node_modules", "__pycache__"):
            continue
        if (child / name).is_file():
            yield child
        elif depth > 1:
            yield from _walk(child, name, depth - 1)
