"""What tells a model, or a reward model, from another: sums over config, tokenizer and parts of weights. Cold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from core.models.headers import weight_files
from core.models.inspect import head_file

SMALL = ("config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template.*", "*processor_config.json")
"""Files that are read whole."""
PIECE, PIECES = 4096, 2048
"""Bytes, and how many times they are read of a file with weights, from its beginning to its end: reading all would take
minutes. Of a file of 5 GB that is 4 KiB each 2.4 MB, so that no layer of a large model stands between two."""


def identity(folder: Path) -> str:
    """Return a sha256 that another model in the folder, or another chat template, would not have."""
    return _sum(folder, weight_files(folder, "model.path"))


def of_judge(folder: Path) -> str:
    """Return a sha256 that another reward model in the folder, an adapter or a whole model, would not have."""
    own = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    weights = weight_files(folder, "stage") if (folder / "config.json").exists() else own
    return _sum(folder, [*weights, head_file(folder, "stage")])


def _sum(folder: Path, weights: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted({path for pattern in SMALL for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    for path in weights:
        size = path.stat().st_size
        total.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= PIECE * PIECES:
                total.update(file.read())
                continue
            for number in range(PIECES):
                file.seek(number * (size - PIECE) // (PIECES - 1))
                total.update(file.read(PIECE))
    return total.hexdigest()
