"""Where the rows of a set come from: files of the data folder, a file elsewhere, a set on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from core.data.describe import Described, suffix
from core.data.files import File, files
from core.data.readers import Item, json_rows, text_rows
from core.data.tables import arrow_rows, csv_rows, parquet_rows, written
from core.errors import InputError
from core.formats import ROWS, Line

READERS: dict[str, Callable[[File, str, str, int], Iterator[Item]]] = {
    ".json": json_rows, ".jsonl": json_rows, ".ndjson": json_rows, ".csv": csv_rows, ".tsv": csv_rows,
    ".txt": text_rows, ".parquet": parquet_rows, ".arrow": arrow_rows,
}  # fmt: skip


def items(described: Described, folder: Path, place: str, after: int = 0) -> Iterator[Item]:
    """Yield the rows of a set and what is wrong with broken ones, of those behind the place `after` (Line.row).

    Raises InputError where a file, or the rest of it, can't be read at all.
    """
    if described.hub and not (described.file and (folder / described.file).exists()):
        yield from islice(_hub_rows(described, place), after, None)
        return
    sources: list[File] = [Remote(described.url)] if described.url else list(files(described, folder, place))
    first, behind = after >> ROWS, after & ((1 << ROWS) - 1)
    for index, file in enumerate(sources[first:], first):
        if suffix(file.name) not in READERS:
            raise InputError("data.suffix", place, file=file.name, known=", ".join(READERS))
        try:
            for line, raw in READERS[suffix(file.name)](file, place, described.encoding, behind):
                yield (replace(line, source=index) if index else line), raw
            behind = 0
        except OSError as error:
            raise InputError("data.unreadable", place, file=file.name, what=_first_line(error)) from None


@dataclass(frozen=True)
class Remote:
    """A file that fsspec reaches: https, s3, gs."""

    url: str

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]

    def open(self, mode: str) -> IO[Any]:
        """Open it for reading; raises OSError with what is missing where the file can't be had."""
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(self.url)
            return filesystem.open(path, mode)
        except (ImportError, ValueError) as error:  # s3fs or gcsfs is not installed, or the address is none
            raise OSError(str(error)) from None


def _hub_rows(described: Described, place: str) -> Iterator[Item]:
    """Stream a set of the hub; lines are numbers of rows, from 1."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        rows = datasets.load_dataset(
            described.hub,
            described.subset or None,
            data_dir=described.folder or None,
            split=described.split,
            streaming=True,
        )
        for number, row in enumerate(rows, 1):
            yield Line(place, described.hub, number), {key: written(value) for key, value in dict(row).items()}
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        raise InputError("data.hub", place, name=described.hub, what=_first_line(error)) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
