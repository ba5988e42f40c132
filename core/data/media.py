"""The files that rows name: there, inside the data folder, and what they are said to be. Nothing is decoded."""

from __future__ import annotations

from pathlib import Path

from core.formats import Line, Row

PIXELS = 100_000_000
"""Of an image; more is made to fill memory."""


def check(row: Row, folder: Path, line: Line) -> None:
    """Raise InputError for the first file of a row that can't be what the row says."""
    root = folder.resolve()
    for kind, paths in row.media.items():
        for path in paths:
            try:
                file = (root / path).resolve()
                there = file.is_relative_to(root) and file.is_file()
            except (OSError, ValueError):  # no name that a file could have
                file, there = root, False
            if not there:
                raise line.error("data.media_missing", path=path[:200], folder=str(folder))
            if kind == "images":
                _check_image(file, path, line)


def _check_image(file: Path, path: str, line: Line) -> None:
    """Look at the header of an image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, ValueError):
        raise line.error("data.media_foreign", path=path[:200]) from None
    except Image.DecompressionBombError:
        width, height = PIXELS, PIXELS
    if width * height > PIXELS:
        raise line.error("data.media_huge", path=path[:200], limit=PIXELS // 1_000_000)
