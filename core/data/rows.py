"""The rows of a set in standard form, each checked before anything heavy sees it: no broken one is just dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from core.data import media
from core.data.describe import Described
from core.data.detect import detect, wrapped
from core.data.readers import Item
from core.data.sources import items
from core.errors import InputError
from core.formats import Format, Line, Raw, Row, columns

ANSWERS = ("answer",)
"""The kinds of rows that supervised fine-tuning and evaluation learn from and ask."""
LEARNABLE = ("answer", "text")
REFUSED = {"ranking": "data.ranking", "feedback": "data.feedback", "text": "data.plain", "answer": "data.answers"}
LOOKED_AT, SEARCHED = 20, 1000
"""Rows by which the format of a set without a description is told; of the first so many, for some may be broken."""
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
    takes: Callable[[], Sequence[str]] = tuple,
    whole: bool = True,
) -> Iterator[Row]:
    """Yield the standard rows of a set.

    takes: tells the kinds of files that the model takes (images, videos, audios), asked where a row has any; whole:
    images are decoded once, to see that they can be. Raises InputError at `place` for the first broken row; with
    `broken`, it is noted there and passed over. A row of a kind that is not `wanted`, or with files that are not taken,
    is always refused: the whole set is of that kind.
    """
    for line, row, _ in numbered(described, folder, place, broken):
        if row.kind not in wanted:
            raise InputError(REFUSED[row.kind], place, name=described.name)
        if row.media and (foreign := [kind for kind in row.media if kind not in takes()]):
            raise InputError("data.media", place, name=described.name, kinds=", ".join(foreign))
        if row.media:
            try:
                media.check(row, folder, line, whole=whole)
            except InputError as error:
                if broken is None:
                    raise
                broken.add(error)
                continue
        yield row


def numbered(
    described: Described, folder: Path, place: str, broken: Broken | None = None, after: int = 0
) -> Iterator[tuple[Line, Row, Raw]]:
    """Yield (where it stands, standard row, row as it is in the file), of rows behind line `after`."""
    names, rows = opening(described, folder, place, after)
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
    if not seen and not after:
        raise InputError("data.empty", place, file=described.name)


def opening(described: Described, folder: Path, place: str, after: int = 0) -> tuple[Format, Iterator[Item]]:
    """Return (the format of a set, its rows behind line `after`): the description or the first rows tell the format."""
    rows = items(described, folder, place)
    head: list[Item] = []
    good: list[tuple[Line, Raw]] = []
    for line, raw in islice(rows, SEARCHED):
        head.append((line, raw))
        if not isinstance(raw, InputError):
            good.append((line, raw))
        if len(good) == LOOKED_AT:
            break
    names = described.names
    if names is None:
        for _, broken in head if not good else ():
            if isinstance(broken, InputError):
                raise broken
        if not good:
            raise InputError("data.empty", place, file=described.name)
        names = detect([raw for _, raw in good])
        line, raw = good[0]
        if names is None and (column := wrapped(raw)):
            raise line.error("data.wrapped", column=column)
        if names is None:
            raise line.error("data.no_format", columns=columns(raw))
    behind = items(described, folder, place, after) if after else chain(head, rows)
    return names.settled(good[0][1]) if good else names, behind
