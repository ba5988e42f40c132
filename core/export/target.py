"""The folder that an export writes. Cold: the board checks it before an export is started."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import InputError
from core.models.packed import packing


def target(folder: str, workspace: Path) -> Path:
    """Return the folder as a path; raise InputError unless it is empty or absent and can be written to."""
    path = workspace / Path(folder).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError("path.not_empty", "folder", path=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise InputError("path.not_writable", "folder", path=str(path.parent)) from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError("path.not_writable", "folder", path=str(path.parent))
    return path


def check_base(packed: str) -> None:
    """Raise InputError for a base that comes packed in a way that nothing can be merged into. packed: its method."""
    if packed not in ("", "bitsandbytes") and not packing(packed).unpacked:
        raise InputError("export.packed", "model.path", given=packed)
