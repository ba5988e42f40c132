"""What tells a model from another: sums over its config, its tokenizer and the ends of its weights. Cold."""

from __future__ import annotations

import hashlib
from pathlib import Path

from core.models.headers import weight_files

SMALL = ("config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template.*", "*processor_config.json")
"""Files that are read whole."""
END = 1 << 20
"""Bytes of a file with weights that are read, at its beginning and at its end: all of them would take minutes."""


def identity(folder: Path) -> str:
    """Return a sha256 that another model in the folder, or another chat template, would not have."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in SMALL for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    for path in weight_files(folder, "model.path"):
        size = path.stat().st_size
        with path.open("rb") as file:
            total.update(f"{path.name} {size}".encode() + file.read(END))
            file.seek(max(size - END, 0))
            total.update(file.read())
    return total.hexdigest()
