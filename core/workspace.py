"""Where things lie: the workspace of a person, what is bundled, and the names by which both are called.

A workspace is a folder with `runs/` in it and whatever else its owner keeps there. Cold and standard library only.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError
from core.team import Team

if TYPE_CHECKING:
    import threading

    from core.events import Writer

BUNDLED = Path(__file__).resolve().parents[1]
ASSETS = BUNDLED / "assets"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Context:
    """What a job is given besides its settings."""

    folder: Path
    """The run folder; everything the job writes goes here."""
    workspace: Path
    """Relative paths and names of runs are looked up here."""
    events: Writer
    stop: threading.Event
    """Set when the job is asked to stop; it then saves its work and raises Stopped."""
    team: Team = field(default_factory=Team)
    """The processes that do the job, and which of them this is."""


def default() -> Path:
    """Return the workspace of this process: TUNEBOARD_WORKSPACE, or the current folder."""
    return Path(os.environ.get("TUNEBOARD_WORKSPACE") or Path.cwd()).resolve()


def _places(path: str, workspace: Path, place: str) -> tuple[Path, Path]:
    """Return what a path means in the workspace and among what is bundled."""
    try:
        own, bundled = (workspace / Path(path).expanduser()).resolve(), (BUNDLED / path).resolve()
        own.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, an unknown ~user
        raise InputError("path.missing", place, path=path[:100]) from None
    return own, bundled


def locate(path: str, workspace: Path, place: str = "") -> Path:
    """Return the existing file or folder that a path means: in the workspace, else among the bundled assets."""
    own, bundled = _places(path, workspace, place)
    if own.exists():
        return own
    if bundled.is_relative_to(ASSETS) and bundled.exists():
        return bundled
    raise InputError("path.missing", place, path=path)


def tuned(reference: str, workspace: Path, place: str = "") -> Path:
    """Return the folder with an adapter or a whole model that a reference means: a run by its name, or a folder.

    The folder of a run means what it has saved, too.
    """
    run = workspace / "runs" / reference
    if not (re.fullmatch(r"\w[^/\\\0]*", reference) and run.is_dir()):
        run = locate(reference, workspace, place)
        if not (run / "run.yaml").is_file():
            return run
    for name in ("adapter", "model"):
        if (run / name).is_dir():
            return run / name
    raise InputError("run.untuned", place, run=run.name)


def jailed(path: str, workspace: Path, allowed: tuple[Path, ...] = (), place: str = "") -> Path:
    """Return the resolved path if it lies in the workspace, the bundled assets or an allowed folder."""
    own, bundled = _places(path, workspace, place)
    if not own.exists() and bundled.is_relative_to(ASSETS) and bundled.exists():
        return bundled
    if not any(own.is_relative_to(root.resolve()) for root in (workspace, ASSETS, *allowed)):
        raise InputError("path.outside", place, path=path, root=str(workspace))
    return own
