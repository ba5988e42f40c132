"""Opening the files of a set: only regular ones inside the data folder; packed ones are unpacked as they are read."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Protocol

from core.data.describe import Described, data_files, suffix
from core.errors import InputError

RATIO = 200
"""Text shrinks to a hundredth at best; what unpacks to more than this many times its size was made to fill memory."""
HARMLESS = 64 << 20
"""Bytes that may come out of any packed file."""
BUFFER = 1 << 18
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\xff\xff\xff\xff": "Arrow",  # as a stream
    b"version https://git-lfs": "Git LFS",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"%PDF": "PDF",
}
BOM = b"\xef\xbb\xbf"


def files(described: Described, folder: Path, place: str) -> list[Path]:
    """Return the files of a set in the data folder, each known to be regular and inside it."""
    path = folder / described.file
    if path.resolve().is_dir() and path.resolve().is_relative_to(folder.resolve()):
        found = data_files(path)
        if not found:
            raise InputError("data.empty_folder", place, folder=described.file)
        return [regular(file, folder, place) for file in found]
    return [regular(path, folder, place)]


def regular(path: Path, folder: Path, place: str) -> Path:
    """Return the resolved path of a regular file in the data folder; raise InputError for anything else."""
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise InputError("data.outside", place, file=path.name, folder=str(folder), target=str(resolved))
    try:
        mode = resolved.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("data.no_file", place, file=path.name, folder=str(folder)) from None
    if not stat.S_ISREG(mode):
        raise InputError("data.not_regular", place, file=path.name)
    return resolved


class File(Protocol):
    """What readers need of a file: a Path, or one that lies elsewhere (sources.Remote)."""

    @property
    def name(self) -> str: ...

    def open(self, mode: str) -> IO[Any]: ...


@contextmanager
def opened(path: File, place: str, *, magic: str = "") -> Iterator[BufferedReader]:
    """Open a file whose bytes must be of one kind: "" for text, else a value of MAGIC. gz files are unpacked."""
    with path.open("rb") as raw:
        packed = path.name.lower().endswith(".gz")
        file = BufferedReader(_Unpacked(raw, path.name, place) if packed else raw, BUFFER)  # type: ignore[arg-type]
        head = file.peek(64)[:64]
        if head:
            _refuse_foreign(head, magic, path.name, place)
        if head.startswith(BOM) and not magic:
            file.read(len(BOM))
        yield file


class _Unpacked(gzip.GzipFile):
    """A gzip file that tells when it is broken, and refuses to grow out of all proportion."""

    def __init__(self, raw: IO[bytes], path: str, place: str) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self.packed, self.path, self.place = raw, path, place

    def readinto(self, buffer: Any) -> int:
        """Called by the BufferedReader around it."""
        try:
            count = super().readinto(buffer)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError("data.unpack", self.place, file=self.path, what=str(error)) from None
        if self.tell() > max(HARMLESS, RATIO * self.packed.tell()):
            raise InputError("data.bomb", self.place, file=self.path, ratio=RATIO)
        return count


def twice(names: Iterable[str]) -> str:
    """Return the first name that stands a second time; "" if there is none."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), "")  # type: ignore[func-returns-value]


def _refuse_foreign(head: bytes, wanted: str, name: str, place: str) -> None:
    what = next((what for magic, what in MAGIC.items() if head.startswith(magic)), "")
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        what = "HTML"
    if what == "Git LFS":
        raise InputError("data.lfs", place, file=name)
    if what != wanted:
        raise InputError("data.foreign", place, file=name, what=what or "text", wanted=wanted or suffix(name)[1:])
