"""What the cache of encoded sets holds: how much, since when, and how to be rid of it. Cold, unlike cache.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    found = [(path, path.stat()) for path in folder(workspace).glob("*.arrow")]
    made = [Entry(path.stem, stat.st_size, stat.st_mtime) for path, stat in found]
    return sorted(made, key=lambda entry: -entry.used)


def clear(workspace: Path) -> int:
    """Delete what is kept and return how many bytes that was. A run that reads one keeps it until it ends."""
    freed = 0
    for path in folder(workspace).glob("*.arrow"):
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    return freed
