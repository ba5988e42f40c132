"""Folders and files that are whole or absent: written aside, renamed last. Standard library only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """Give a fresh folder beside `folder`; at the end of the block it takes its place. An error leaves nothing new."""
    place = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
        flush(place)
    except BaseException:  # an interrupt, too, leaves nothing half written; it goes on
        shutil.rmtree(place, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    publish(place, folder)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file aside and rename it: a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    place.write_text(json.dumps(value), encoding="utf-8")
    place.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def publish(place: Path, folder: Path) -> None:
    """Rename a flushed folder and make the new name last through a crash of the machine."""
    place.rename(folder)
    _fsync(folder.parent)


def flush(folder: Path) -> None:
    """Have the disk write every file below a folder, and their names."""
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
