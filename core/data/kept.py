"""What the cache of encoded sets holds: how much, since when, and how to be rid of it. Cold, unlike cache.py."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


def folder(workspace: Path) -> Path:
    """Return where a workspace keeps its encoded sets."""
    return workspace / ".cache" / "data"


@dataclass(frozen=True)
class Entry:
    """One encoded set."""

    name: str
    bytes: int
    used: float
    """When, in seconds since 1970."""


def entries(workspace: Path) -> list[Entry]:
    """Return what is kept, the latest used first."""
    made = []
    for path in folder(workspace).glob("*.arrow"):
        with suppress(FileNotFoundError):  # somebody clears at the same time
            stat = path.stat()
            made.append(Entry(path.stem, stat.st_size, stat.st_mtime))
    return sorted(made, key=lambda entry: -entry.used)


def clear(workspace: Path) -> int:
    """Delete what is kept and return how many bytes that was. A run that reads one keeps it until it ends."""
    freed = 0
    for path in folder(workspace).iterdir() if folder(workspace).is_dir() else ():
        written_by = path.name.split(".")[-2]  # of one that is being written: .NAME.PID.THREAD
        if path.suffix == ".arrow" or not (written_by.isdigit() and psutil.pid_exists(int(written_by))):
            with suppress(FileNotFoundError):
                freed += path.stat().st_size
                path.unlink()
    return freed
