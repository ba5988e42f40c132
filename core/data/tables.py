"""Rows of tables: CSV and TSV line by line, Parquet and Arrow batch by batch."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from core.data.describe import suffix
from core.data.files import File, opened, twice
from core.data.readers import LONGEST_LINE, Item, raw_lines, undecoded
from core.errors import InputError
from core.formats import Line

BATCH = 1024
"""Rows of a Parquet or Arrow file that are in memory at once."""


def csv_rows(path: File, place: str, encoding: str, after: int = 0) -> Iterator[Item]:
    """Read a table with the names of its columns in the first line; every row must have as many fields."""
    with opened(path, place) as file:
        sample = file.peek(64 << 10).decode(encoding, errors="replace")
        delimiter = "\t" if suffix(path.name) == ".tsv" else _delimiter(sample)
        table = _Table(file, path.name, place, encoding, delimiter)
        line, columns = table.next()
        while columns == []:  # blank lines before the header
            line, columns = table.next()
        if isinstance(columns, InputError):
            raise columns
        if columns is None:
            return
        columns = _header(columns, line)
        table.skip(after)
        while True:
            line, fields = table.next()
            if fields is None:
                return
            if isinstance(fields, InputError):
                yield line, fields
            elif len(fields) == len(columns):
                yield line, dict(zip(columns, fields, strict=True))
            elif fields:  # a blank line is none
                yield line, line.error("data.ragged", given=len(fields), wanted=len(columns))


class _Table:
    """The rows of a table; behind one that can't be read, the next line begins a new one."""

    def __init__(self, file: BufferedReader, name: str, place: str, encoding: str, delimiter: str) -> None:
        self.file, self.name, self.place, self.encoding, self.delimiter = file, name, place, encoding, delimiter
        self.number = 0
        """Lines that were given to the reader."""
        self.own: list[tuple[Line, bytes | InputError]] = []
        """Lines of the row that is being read."""
        self.again: deque[tuple[Line, bytes | InputError]] = deque()
        """Lines to be read once more: an open quote had taken them for a part of its row."""
        self.wrong: InputError | None = None
        """What is wrong with a line of it."""
        csv.field_size_limit(LONGEST_LINE)
        self.skip(0)

    def skip(self, after: int) -> None:
        """Pass over the lines up to this one, which must be the last of a row."""
        passed = max(after - self.number, 0)
        self.source = raw_lines(self.file, self.name, self.place, passed, self.number)
        self.number += passed
        self._begin()

    def next(self) -> tuple[Line, list[str] | InputError | None]:
        """Return where the next row begins, and its fields; None at the end."""
        line, self.own, self.wrong = Line(self.place, self.name, self.number + 1), [], None
        try:
            fields = next(self.rows, None)
            return line, self.wrong or fields
        except csv.Error as error:
            wrong = line.error("data.csv", what=str(error))
        self.again.extendleft(reversed(self.own[1:]))
        self.number = line.number
        self._begin()
        return line, wrong

    def _begin(self) -> None:
        self.rows = csv.reader(self._lines(), delimiter=self.delimiter, strict=True)

    def _lines(self) -> Iterator[str]:
        while read := self.again.popleft() if self.again else next(self.source, None):
            line, raw = read
            self.own.append(read)
            self.number = line.number
            yield self._text(line, raw)

    def _text(self, line: Line, raw: bytes | InputError) -> str:
        """Return the text of a line; what is wrong with it is wrong with the row, wherever that ends."""
        if isinstance(raw, InputError):
            self.wrong = raw
            return "\n"
        try:
            text = raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            self.wrong, text = undecoded(raw, error, line), raw.decode(self.encoding, errors="replace")
        if "\0" in text:
            self.wrong = line.error("data.character", column="")
        return text.replace("\0", "")


def _delimiter(sample: str) -> str:
    """Return the delimiter that the first line uses most: a comma, a semicolon, a tab or a bar."""
    first = sample.lstrip("\r\n").partition("\n")[0]
    return max(",;\t|", key=first.count)


def _header(fields: list[str], line: Line) -> list[str]:
    """Return the names of the columns; one without a name, as index columns are, gets its number."""
    names = [name.strip() or f"column_{index}" for index, name in enumerate(fields)]
    if double := twice(names):
        raise line.error("data.column_twice", column=double)
    return names


def parquet_rows(path: File, place: str, encoding: str, after: int = 0) -> Iterator[Item]:
    """Read a Parquet file batch by batch; lines are numbers of rows, from 1."""
    import pyarrow as pa
    from pyarrow import parquet

    with opened(path, place, magic="Parquet") as file:
        try:
            table = parquet.ParquetFile(file)
            passed, groups = 0, list(range(table.num_row_groups))
            while groups and passed + table.metadata.row_group(groups[0]).num_rows <= after:
                passed += table.metadata.row_group(groups.pop(0)).num_rows
            batches = table.iter_batches(BATCH, row_groups=groups) if groups else []
            yield from _batches(batches, path.name, place, after, passed)
        except (pa.ArrowException, OSError) as error:
            raise InputError("data.columnar", place, file=path.name, what=str(error).splitlines()[0][:200]) from None


def arrow_rows(path: File, place: str, encoding: str, after: int = 0) -> Iterator[Item]:
    """Read an Arrow file, or a stream of batches as `datasets` writes them."""
    import pyarrow as pa

    with opened(path, place, magic="Arrow") as file:
        try:
            plain = isinstance(path, Path) and suffix(path.name) == path.suffix.lower()
            source = pa.memory_map(str(path)) if plain else pa.BufferReader(file.read())
            if source.read(6) == b"ARROW1":
                whole = pa.ipc.open_file(source)
                batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            yield from _batches(batches, path.name, place, after)
        except (pa.ArrowException, OSError) as error:
            raise InputError("data.columnar", place, file=path.name, what=str(error).splitlines()[0][:200]) from None


def _batches(batches: Any, name: str, place: str, after: int, number: int = 0) -> Iterator[Item]:
    """Yield the rows behind row `after`; `number`: rows before the first batch."""
    for batch in batches:
        if number + batch.num_rows <= after:
            number += batch.num_rows
            continue
        for row in batch.to_pylist():
            number += 1
            if number > after:
                yield Line(place, name, number), {key: written(value) for key, value in row.items()}


def written(value: Any) -> Any:
    """Return a value without the nulls of fields that only other rows have: a table gives all the same fields."""
    if isinstance(value, dict):
        return {key: written(item) for key, item in value.items() if item is not None}
    return [written(item) for item in value] if isinstance(value, list) else value
