"""Folders and files that are whole or absent: written aside, renamed last. Standard library only."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RESERVE = ".reserve"
RESERVED = 64 << 10
"""Bytes that a run holds back for its last words: why it ended, when the disk is full."""


def hold(folder: Path) -> None:
    """Take up room on the disk for what must still be written at the end. Raises OSError where there is none."""
    try:
        (folder / RESERVE).write_bytes(os.urandom(RESERVED))  # zeros may take no room
    except OSError:
        release(folder)
        raise


def release(folder: Path) -> None:
    """Let go of the room that was held."""
    (folder / RESERVE).unlink(missing_ok=True)


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """Give a fresh folder beside `folder`; at the end of the block it takes its place. An error leaves nothing new."""
    place = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with ExitStack() as undone:
        undone.callback(shutil.rmtree, place, ignore_errors=True)
        yield place
        flush(place)
        undone.pop_all()
    if folder.exists():
        shutil.rmtree(folder)
    publish(place, folder)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file aside and rename it: a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        place.write_text(json.dumps(value), encoding="utf-8")
        place.replace(path)
    except OSError:
        place.unlink(missing_ok=True)  # half of it would stay on a full disk
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def has_checkpoint(run: Path) -> bool:
    """Say whether the folder of a run has a checkpoint to go on from."""
    return any((run / "checkpoints").glob("checkpoint-*"))


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
