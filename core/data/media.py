"""The files that rows name, and the images that come with a question: found, checked, opened. Nothing else ever is.

A file of a row lies inside the data folder, an image of a question is a data: URL; no other address is followed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError
from core.formats import Line, Row
from core.models.packages import require

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = 100_000_000
"""Of an image; more is made to fill memory."""
BYTES = 64 << 20
"""Of a file."""
SECONDS = 3600
"""Of a sound."""
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may open: others of its formats start foreign programs (EPS runs Ghostscript)."""


def check(row: Row, folder: Path, line: Line, *, whole: bool = False) -> None:
    """Raise InputError for the first file of a row that can't be what the row says.

    Of images the beginning is looked at; whole: they are decoded.
    """
    for kind, paths in row.media.items():
        for path in paths:
            file = located(path, folder)
            if file is None:
                raise line.error("data.media_missing", path=path[:200], folder=str(folder))
            if file.stat().st_size > BYTES:
                raise line.error("data.media_large", path=path[:200], limit=BYTES >> 20)
            if kind == "images":
                image(file, _of_row(path, line), whole=whole)
            if kind == "audios" and whole:
                _check_sound(file, path, line)


def located(path: str, folder: Path) -> Path | None:
    """Return the regular file inside the folder that a path means; None where there is none."""
    root = folder.resolve()
    try:
        file = (root / path).resolve()
        return file if file.is_relative_to(root) and file.is_file() else None
    except (OSError, ValueError):  # no name that a file could have
        return None


def image(
    source: Path | bytes, wrong: Callable[[bool], InputError], *, whole: bool = True, pixels: int = PIXELS
) -> Image:
    """Return an image: decoded, upright, RGB; without `whole`, as its header says it is.

    Raises what `wrong` makes of whether it is too large (else it is no image, or a broken one).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=KINDS) as found:
            if found.width * found.height > pixels:
                raise wrong(True)
            return ImageOps.exif_transpose(found).convert("RGB") if whole else found
    except Image.DecompressionBombError:
        raise wrong(True) from None
    except (OSError, ValueError, SyntaxError):  # foreign, cut off, damaged: Pillow says so in all these ways
        raise wrong(False) from None


def from_urls(urls: Sequence[tuple[str, str]]) -> list[Image]:
    """Return the images in (place of a setting, data: URL), together no larger than one may be.

    Raises InputError at the place of the first other URL: nothing is ever fetched.
    """
    made: list[Image] = []
    for place, url in urls:
        head, _, body = url.partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise InputError("media.url", place)
        if len(body) > BYTES * 4 // 3:
            raise InputError("media.large", place, limit=BYTES >> 20)
        room = PIXELS - sum(image.width * image.height for image in made)
        try:
            made.append(image(base64.b64decode(body, validate=True), _of_question(place), pixels=room))
        except ValueError:
            raise InputError("media.foreign", place) from None
    return made


@dataclass(frozen=True)
class Sight:
    """What belongs to a row of tokens beside them, kept as JSON until the row is due."""

    text: str
    """What the template made of the row, with one placeholder for each file."""
    files: dict[str, list[str]]
    """images, videos, audios -> paths in the data folder."""
    stamps: list[list[int]]
    """Size in bytes and time of each file: whether it changed since."""

    def dump(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def load(cls, dumped: str) -> Sight:
        return cls(**json.loads(dumped))


def stamps(files: dict[str, list[str]], folder: Path) -> list[list[int]]:
    """Return size and time of the files, in their order; zeros for one that is gone."""
    found = [located(path, folder) for paths in files.values() for path in paths]
    stats = [file.stat() if file else None for file in found]
    return [[stat.st_size, stat.st_mtime_ns] if stat else [0, 0] for stat in stats]


def _check_sound(file: Path, path: str, line: Line) -> None:
    """Raise InputError for a file that is no sound, or one that is made to fill memory."""
    require("soundfile", line.place)
    import soundfile

    try:
        seconds = soundfile.info(str(file)).duration
    except (RuntimeError, OSError):  # soundfile.LibsndfileError is a RuntimeError
        raise line.error("data.media_sound", path=path[:200], limit=SECONDS // 60) from None
    if not seconds <= SECONDS:
        raise line.error("data.media_sound", path=path[:200], limit=SECONDS // 60)


def _of_row(path: str, line: Line) -> Callable[[bool], InputError]:
    def wrong(huge: bool) -> InputError:
        if huge:
            return line.error("data.media_huge", path=path[:200], limit=PIXELS // 1_000_000)
        return line.error("data.media_foreign", path=path[:200])

    return wrong


def _of_question(place: str) -> Callable[[bool], InputError]:
    def wrong(huge: bool) -> InputError:
        if huge:
            return InputError("media.huge", place, limit=PIXELS // 1_000_000)
        return InputError("media.foreign", place)

    return wrong
