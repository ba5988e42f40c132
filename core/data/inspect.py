"""What is in a set, before anything is trained on it: its format, its rows page by page, every broken row."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from core.data import media
from core.data.describe import Described
from core.data.rows import LOOKED_AT, opening
from core.data.sources import items
from core.errors import InputError
from core.formats import Format

PLACE = "data"
SECONDS = 1.5
"""How long a page may take; a search that finds nothing by then says how far it came."""
LISTED = 100_000
"""Broken rows that are listed; all are counted."""
TELLING = 12
"""Letters that a text must have for its language to be told."""
COLUMNS = 50
"""Of a row that are shown."""
SHOWN = 2000
"""Characters of a cell that are shown at most."""


@dataclass
class Inspection:
    """What is in a set."""

    format: str
    mapping: dict[str, Any]
    """Fields of the format whose column is not the usual one."""
    columns: list[str]
    rows: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    """{"line", "file", "code", "params", "place"} of broken rows; place: Line.row."""
    language: str = ""


def inspect(described: Described, folder: Path, advance: Callable[[int], None] = lambda done: None) -> Inspection:
    """Read a whole set and say what is in it. Raises InputError where it, or its rest, can't be read at all."""
    names, rows = opening(described, folder, PLACE)
    found = Inspection(names.kind, mapping(names), [])
    kinds: Counter[str] = Counter()
    columns: dict[str, None] = {}
    texts: list[str] = []
    for line, raw in rows:
        try:
            if isinstance(raw, InputError):
                raise raw
            columns |= dict.fromkeys(raw)
            row = names.row(raw, line)
            media.check(row, folder, line)
            kinds[row.kind] += 1
            if len(texts) < LOOKED_AT:
                texts.append(" ".join(str(message["content"]) for message in row.messages()))
        except InputError as error:
            found.broken += 1
            if len(found.errors) < LISTED:
                found.errors.append({**said(error), "place": line.row})
        if (kinds.total() + found.broken) % 4096 == 0:
            advance(kinds.total() + found.broken)
    if not kinds and not found.broken:
        raise InputError("data.empty", PLACE, file=described.name)
    found.rows, found.kinds, found.columns = kinds.total(), dict(kinds), list(columns)
    found.language = language(" ".join(texts))
    return found


def said(error: InputError) -> dict[str, Any]:
    """Return an error about a row as the command line and the board show it."""
    params = dict(error.params)
    return {"line": params.get("line", 0), "file": params.get("file", ""), "code": error.code, "params": params,
            "message": str(error).removeprefix(f"{error.place}: ")}  # fmt: skip


def mapping(names: Format) -> dict[str, Any]:
    """Return what an entry of dataset_info.json must say of a format, beyond its name."""
    return names.model_dump(exclude_defaults=True, exclude={"kind"})


def entry(file: str, names: Format) -> dict[str, Any]:
    """Return the description of a file: an entry of dataset_info.json."""
    given = mapping(names)
    made: dict[str, Any] = {"file_name": file, "formatting": names.kind}
    if given.pop("ranking", False) and names.kind != "preference":
        made["ranking"] = True
    tags = {key: value for key, value in given.items() if key.endswith("_tag") and key != "kto_tag"}
    columns = {key: value for key, value in given.items() if key not in tags}
    return made | ({"columns": columns} if columns else {}) | ({"tags": tags} if tags else {})


def language(text: str) -> str:
    """Return the language of a text as its ISO 639 code; "" where there are too few letters to tell it by."""
    import py3langid

    return str(py3langid.classify(text[:20_000])[0]) if sum(map(str.isalpha, text[:200])) >= TELLING else ""


@dataclass
class Page:
    """Some rows of a set as they are in its file."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """{"line", "file", "cells": {column: text}} or {"line", "file", "error"}; line: where it stands (Line.row)."""
    next: int | None = None
    """The place behind which the next page begins; None at the end."""
    searched: int = 0
    """Lines that were looked at."""


def page(described: Described, folder: Path, after: int = 0, count: int = 20, query: str = "") -> Page:
    """Return the first `count` rows behind a line, of those that contain a text if one is given.

    Lines, and rows of Parquet and Arrow files, are passed over unread; those of a JSON list must be read to be passed.
    """
    until = 0.0
    found, wanted = Page(), query.casefold()
    for line, raw in items(described, folder, PLACE, after):
        number, until = line.row, until or time.monotonic() + SECONDS  # how long it takes to get here is not counted
        if len(found.rows) == count or time.monotonic() > until:
            found.next = number - 1
            break
        found.searched += 1
        if isinstance(raw, InputError):
            if not wanted:
                found.rows.append({"line": number, "file": line.file, "error": said(raw)})
        elif not wanted or wanted in json.dumps(raw, ensure_ascii=False, default=str).casefold():
            cells = {key: cell(raw[key]) for key in islice(raw, COLUMNS)}
            found.rows.append({"line": number, "file": line.file, "cells": cells})
    return found


def cell(value: Any) -> str:
    """Return a value of a row as text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
