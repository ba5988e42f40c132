"""Rows of tables: CSV and TSV line by line, Parquet and Arrow batch by batch."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from core.data.describe import suffix
from core.data.files import File, opened
from core.data.readers import LONGEST_LINE, Item, text_lines
from core.errors import InputError
from core.formats import Line

BATCH = 1024
"""Rows of a Parquet or Arrow file that are in memory at once."""


def csv_rows(path: File, place: str, encoding: str, after: int = 0) -> Iterator[Item]:
    """Read a table with the names of its columns in the first line; every row must have as many fields."""
    with opened(path, place) as file:
        sample = file.peek(64 << 10)
        lines = _Lines(text_lines(file, path.name, place, encoding))
        delimiter = "\t" if suffix(path.name) == ".tsv" else _delimiter(sample.decode(encoding, errors="replace"))
        csv.field_size_limit(LONGEST_LINE)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        columns: list[str] = []
        while True:
            line = Line(place, path.name, rows.line_num + 1)
            try:
                fields = next(rows, None)
            except csv.Error as error:
                raise line.error("data.csv", what=str(error)) from None
            if fields is None:
                break
            if not columns:
                columns = _header(fields, line)
            elif line.number <= after:
                continue
            elif len(fields) != len(columns):
                if fields:  # a blank line is none
                    yield line, line.error("data.ragged", given=len(fields), wanted=len(columns))
            else:
                yield line, dict(zip(columns, fields, strict=True))


class _Lines:
    """The lines of a file as csv.reader takes them."""

    def __init__(self, lines: Iterator[tuple[Line, str | InputError]]) -> None:
        self.lines = lines

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, text = next(self.lines)
        if isinstance(text, InputError):
            raise text
        if "\0" in text:
            raise line.error("data.character", column="")
        return text


def _delimiter(sample: str) -> str:
    """Return the delimiter that the first line uses most: a comma, a semicolon, a tab or a bar."""
    first = sample.partition("\n")[0]
    return max(",;\t|", key=first.count)


def _header(fields: list[str], line: Line) -> list[str]:
    """Return the names of the columns; one without a name, as index columns are, gets its number."""
    names = [name.strip() or f"column_{index}" for index, name in enumerate(fields)]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise line.error("data.column_twice", column=double)
    return names


def parquet_rows(path: File, place: str, encoding: str, after: int = 0) -> Iterator[Item]:
    """Read a Parquet file batch by batch; lines are numbers of rows, from 1."""
    import pyarrow as pa
    from pyarrow import parquet

    with opened(path, place, magic="Parquet") as file:
        try:
            yield from _batches(parquet.ParquetFile(file).iter_batches(BATCH), path.name, place, after)
        except (pa.ArrowException, OSError) as error:
            raise InputError("data.columnar", place, file=path.name, what=str(error).splitlines()[0][:200]) from None


def arrow_rows(path: File, place: str, encoding: str, after: int = 0) -> Iterator[Item]:
    """Read an Arrow file, or a stream of batches as `datasets` writes them."""
    import pyarrow as pa

    with path.open("rb") as file:
        try:
            if file.read(6) == b"ARROW1":
                whole = pa.ipc.open_file(pa.memory_map(str(path)))
                batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(pa.memory_map(str(path))))
            yield from _batches(batches, path.name, place, after)
        except (pa.ArrowException, OSError) as error:
            raise InputError("data.columnar", place, file=path.name, what=str(error).splitlines()[0][:200]) from None


def _batches(batches: Any, name: str, place: str, after: int) -> Iterator[Item]:
    number = 0
    for batch in batches:
        if number + batch.num_rows <= after:
            number += batch.num_rows
            continue
        for row in batch.to_pylist():
            number += 1
            if number > after:
                yield Line(place, name, number), row
