"""The rows of a set in standard form, each checked before anything heavy sees it: no broken one is just dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from core.data.describe import Described
from core.data.detect import detect
from core.data.sources import items
from core.errors import InputError
from core.formats import Format, Line, Raw, Row

ANSWERS = ("answer",)
"""The kinds of rows that supervised fine-tuning and evaluation learn from and ask."""
LEARNABLE = ("answer", "text")
REFUSED = {"ranking": "data.ranking", "feedback": "data.feedback", "text": "data.plain"}
LOOKED_AT = 20
"""Rows by which the format of a set without a description is told."""
KEPT = 1000
"""Broken rows that are remembered; all are counted."""


@dataclass
class Broken:
    """The rows of a set that were passed over, because they are broken."""

    count: int = 0
    first: list[InputError] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(error)


def examples(
    described: Described,
    folder: Path,
    place: str,
    *,
    wanted: Sequence[str] = LEARNABLE,
    broken: Broken | None = None,
) -> Iterator[Row]:
    """Yield the standard rows of a set.

    Raises InputError at `place` for the first broken row; with `broken`, it is noted there and passed over. A row of a
    kind that is not `wanted` is always refused: the whole set is of that kind.
    """
    for row in numbered(described, folder, place, broken):
        if row[1].kind not in wanted:
            raise InputError(REFUSED.get(row[1].kind, "data.kind"), place, name=described.name)
        if row[1].media:
            raise InputError("data.media", place, name=described.name)
        yield row[1]


def numbered(
    described: Described, folder: Path, place: str, broken: Broken | None = None, after: int = 0
) -> Iterator[tuple[Line, Row, Raw]]:
    """Yield (where it stands, standard row, row as it is in the file), of rows behind line `after`."""
    names, rows = opening(described, folder, place)
    if after:
        rows = items(described, folder, place, after)
    count = seen = 0
    for line, raw in rows:
        seen += 1
        try:
            if isinstance(raw, InputError):
                raise raw
            row = names.row(raw, line)
        except InputError as error:
            if broken is None:
                raise
            broken.add(error)
            continue
        yield line, row, raw
        count += 1
        if count == described.rows:
            return
    if not seen:
        raise InputError("data.empty", place, file=described.name)


def opening(described: Described, folder: Path, place: str) -> tuple[Format, Iterator[tuple[Line, Raw | InputError]]]:
    """Return (the format of a set, all its rows): the description, or else the first rows, tell the format."""
    rows = items(described, folder, place)
    head = list(islice(rows, LOOKED_AT))
    good = [(line, raw) for line, raw in head if not isinstance(raw, InputError)]

    def all_rows() -> Iterator[tuple[Line, Raw | InputError]]:
        yield from head
        yield from rows

    names = described.names
    if names is None:
        if head and not good:
            raise head[0][1] if isinstance(head[0][1], InputError) else AssertionError
        if not good:
            raise InputError("data.empty", place, file=described.name)
        names = detect([raw for _, raw in good])
        if names is None:
            line, raw = good[0]
            raise line.error("data.no_format", columns=", ".join(raw))
    return names.settled(good[0][1]) if good else names, all_rows()
