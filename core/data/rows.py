"""Rows of a JSON or JSON Lines file, each checked before anything heavy sees it: a broken one is named, not skipped."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from core.data.describe import Described
from core.errors import InputError
from core.formats import JSON_TYPES, Format, Line, Message
from core.schema import variants

LONGEST_LINE = 8 << 20
"""Bytes: a longer line is no example but a whole file in one."""
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
    b"version https://git-lfs": "Git LFS pointer",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
BOM = b"\xef\xbb\xbf"
SPACE = re.compile(r"[ \t\r\n]*")


def conversations(described: Described, folder: Path, place: str) -> Iterator[list[Message]]:
    """Yield the conversation of each row of a set. Raises InputError at `place` for the first thing that is wrong."""
    assert described.path is not None
    path = regular(described.path, folder, place)
    names, count = described.names, 0
    for line, row in rows(path, place):
        names = names or _guess(row, line)
        yield names.conversation(row, line)
        count += 1
        if count == described.rows:
            return
    if not count:
        raise InputError("data.empty", place, file=path.name)


def regular(path: Path, folder: Path, place: str) -> Path:
    """Return the resolved path of a regular file in the data folder; raise InputError for anything else."""
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise InputError("data.outside", place, file=path.name, folder=str(folder), target=str(resolved))
    try:
        mode = resolved.stat().st_mode
    except FileNotFoundError:
        raise InputError("data.no_file", place, file=path.name, folder=str(folder)) from None
    if not stat.S_ISREG(mode):
        raise InputError("data.not_regular", place, file=path.name)
    return resolved


def rows(path: Path, place: str) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Yield (where it stands, object) for each row of a file: one object a line, or one list of objects."""
    with path.open("rb") as file:
        head = file.read(64)
        _refuse_foreign(head, path.name, place)
        start = head.removeprefix(BOM).lstrip()[:1]
        file.seek(len(BOM) if head.startswith(BOM) else 0)
        if start == b"[":
            yield from _list(_decoded(file.read(), Line(place, path.name, 1)), path.name, place)
            return
        number = 0
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            line = Line(place, path.name, number)
            if len(raw) > LONGEST_LINE:
                raise line.error("data.long_line", limit=LONGEST_LINE >> 20)
            if raw.strip():
                yield line, _object(_decoded(raw, line), line, torn=not raw.endswith(b"\n"))


def _refuse_foreign(head: bytes, name: str, place: str) -> None:
    what = next((what for magic, what in MAGIC.items() if head.startswith(magic)), "")
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        what = "HTML"
    if what:
        raise InputError("data.foreign", place, file=name, what=what)


def _decoded(raw: bytes, line: Line) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = Line(line.place, line.file, line.number + raw.count(b"\n", 0, error.start))
        raise at.error("data.not_utf8", byte=raw[error.start]) from None


def _object(text: str, line: Line, torn: bool) -> dict[str, Any]:
    """Return the one object of a line."""
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip()) - 1
        code = "data.torn" if torn and cut else "data.json"
        raise line.error(code, column=error.pos + 1, what=error.msg, text=text[:80].strip()) from None
    except (ValueError, RecursionError) as error:
        raise line.error("data.json", column=1, what=_why(error), text=text[:80].strip()) from None
    return _checked(row, line)


def _list(text: str, name: str, place: str) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Yield the objects of a list one by one, so that each is known by its line."""
    position, number, separator = text.index("[") + 1, 1, ""
    counted = 0
    while True:
        position = _skip(text, position)
        number += text.count("\n", counted, position)
        counted, line = position, Line(place, name, number)
        sign = text[position : position + 1]
        if sign == "]" and separator != ",":
            break
        if separator == "item":
            if sign != ",":
                raise line.error("data.json", **_near(text, position, "a comma or ] is missing"))
            position, separator = position + 1, ","
            continue
        try:
            row, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            at = Line(place, name, error.lineno)
            raise at.error("data.json", **_near(text, error.pos, error.msg)) from None
        except (ValueError, RecursionError) as error:
            raise line.error("data.json", **_near(text, position, _why(error))) from None
        separator = "item"
        yield line, _checked(row, line)
    if _skip(text, position + 1) < len(text):
        raise line.error("data.json", **_near(text, position + 1, "there is something after the list"))


def _skip(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position


def _near(text: str, position: int, what: str) -> dict[str, Any]:
    begin = text.rfind("\n", 0, position) + 1
    return {"column": position - begin + 1, "what": what, "text": text[begin : begin + 80].split("\n")[0].strip()}


def _why(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _checked(row: Any, line: Line) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise line.error("data.not_object", found=JSON_TYPES[type(row)])
    lists = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(row) == 1 and lists and lists[0] not in [f.mark for f in _formats()]:
        raise line.error("data.wrapped", column=lists[0])
    return row


def _guess(row: dict[str, Any], line: Line) -> Format:
    """Return the format that the columns of a first row belong to."""
    for format_ in _formats():
        if format_.mark in row:
            return format_.model_validate({})
    raise line.error("data.no_format", columns=", ".join(row), known=", ".join(f.mark for f in _formats()))


def _formats() -> list[type[Format]]:
    return [cast(type[Format], cls) for cls in variants("core.formats").values()]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)} stands twice")
    return row


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_key_twice)
