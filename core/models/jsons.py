"""Reading the JSON files of a model folder. Cold: the standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import InputError

MAX_JSON_BYTES = 64 << 20
LFS = b"version https://git-lfs"
"""How a pointer begins that stands where Git LFS would put a large file."""


def is_pointer(path: Path) -> bool:
    """Return whether a file is but a pointer of Git LFS."""
    with path.open("rb") as file:
        return file.read(len(LFS)) == LFS


def read_json(path: Path, place: str, missing: str) -> dict[str, Any]:
    """Return the JSON object in a file; `missing` is the code for a file that is not there."""
    if not path.is_file():
        raise InputError(missing, place, folder=str(path.parent))
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError("model.bad_json", place, file=str(path), what="too large")
    content = path.read_bytes()
    if content.startswith(LFS):
        raise InputError("model.lfs_pointer", place, file=str(path))
    try:
        value = json.loads(content.decode())  # json itself would take other encodings, the libraries don't
    except (ValueError, RecursionError):
        raise InputError("model.bad_json", place, file=str(path), what="not JSON") from None
    if not isinstance(value, dict):
        raise InputError("model.bad_json", place, file=str(path), what="no object")
    return value
