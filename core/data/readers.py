"""Rows of JSON and text files: each row with its line; a broken one is named, not dropped."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedReader
from itertools import islice
from typing import Any

from core.data.files import File, opened, twice
from core.errors import InputError
from core.formats import Line, Raw, type_name

LONGEST_LINE = 8 << 20
"""Bytes: a longer line is no example but a whole file in one."""
CHUNK = 1 << 20
"""Characters of a list that are read at once."""
SPACE = re.compile(r"[ \t\r\n]*")
SHOWN = 80
MARGIN = 64
"""Characters at the end of what was read that may be torn: no escape, number or literal is longer than it tells."""

Item = tuple[Line, Raw | InputError]
"""A row and where it stands, or what is wrong with it there."""


def json_rows(path: File, place: str, encoding: str, after: int = 0) -> Iterator[Item]:
    """Read one object a line, or one list of objects; only what stands behind row `after`."""
    with opened(path, place) as file:
        start = file.peek(64).lstrip()[:1]
        yield from (_list if start == b"[" else _lines)(file, path.name, place, encoding, after)


def _lines(file: BufferedReader, name: str, place: str, encoding: str, after: int) -> Iterator[Item]:
    for line, raw in text_lines(file, name, place, encoding, after):
        if line.number == 1 and isinstance(raw, str) and raw.strip() == "{":
            raise line.error("data.spread")
        if isinstance(raw, InputError):
            yield line, raw
        elif raw.strip():
            yield line, _object(raw, line)


def text_lines(
    file: BufferedReader, name: str, place: str, encoding: str, after: int = 0, *, before: int = 0
) -> Iterator[tuple[Line, str | InputError]]:
    """Yield the lines of a file behind line `after`, each decoded; `before`: lines that were read already."""
    for line, raw in raw_lines(file, name, place, after, before):
        if isinstance(raw, InputError):
            yield line, raw
            continue
        try:
            yield line, raw.decode(encoding)
        except UnicodeDecodeError as error:
            yield line, undecoded(raw, error, line)


def undecoded(raw: bytes, error: UnicodeDecodeError, line: Line) -> InputError:
    """Return the error of a line that is not in its encoding."""
    return line.error("data.not_utf8", byte=raw[error.start], encoding=error.encoding)


def raw_lines(
    file: BufferedReader, name: str, place: str, after: int, before: int
) -> Iterator[tuple[Line, bytes | InputError]]:
    """Yield the lines of a file behind line `after`; one that is too long is passed over."""
    number = before + sum(1 for _ in islice(file, after))
    while raw := file.readline(LONGEST_LINE + 1):
        number += 1
        line = Line(place, name, number)
        if len(raw) > LONGEST_LINE:
            yield line, line.error("data.long_line", limit=LONGEST_LINE >> 20)
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LONGEST_LINE)
            continue
        yield line, raw


def _object(text: str, line: Line) -> Raw | InputError:
    """Return the one object of a line."""
    try:
        return _checked(_DECODER.decode(text), line)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip()) - 1
        code = "data.torn" if cut and not text.endswith("\n") else "data.json"
        return line.error(code, column=error.pos + 1, what=error.msg, text=text[:SHOWN].strip())
    except (ValueError, RecursionError) as error:
        return line.error("data.json", column=1, what=_why(error), text=text[:SHOWN].strip())


def _list(file: BufferedReader, name: str, place: str, encoding: str, after: int) -> Iterator[Item]:
    """Read the objects of a list one by one, with no more of the file in memory than one of them needs."""
    text = _Text(file, name, place, encoding)
    text.skip(1)
    separator, count = "", 0
    while True:
        sign, line = text.next(), text.line
        if sign == "]" and separator != ",":
            break
        if separator == "item":
            if sign != ",":
                raise line.error("data.json", **text.near(text.position, "a comma or ] is missing"))
            separator = text.skip(1)
            continue
        item, count = text.item(line), count + 1
        if count > after:
            yield replace(line, item=count), item
        separator = "item"
    text.skip(1)
    if text.next():
        raise text.line.error("data.json", **text.near(text.position, "there is something after the list"))


class _Text:
    """The text of a file around a position, read on as far as needed."""

    def __init__(self, file: BufferedReader, name: str, place: str, encoding: str) -> None:
        self.file, self.name, self.place, self.encoding = file, name, place, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.text, self.position, self.number, self.over = "", 0, 1, False
        self.counted = 0
        self.next()

    @property
    def line(self) -> Line:
        """Where the position is."""
        self.number += self.text.count("\n", self.counted, self.position)
        self.counted = self.position
        return Line(self.place, self.name, self.number)

    def next(self) -> str:
        """Pass over space; return the character that stands there, "" at the end."""
        while True:
            match = SPACE.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text) or not self._more():
                return self.text[self.position : self.position + 1]

    def skip(self, count: int) -> str:
        """Go on by so many characters and return the last."""
        self.position += count
        return self.text[self.position - 1]

    def item(self, line: Line) -> Raw | InputError:
        """Return the object at the position, which moves behind it."""
        while True:
            try:
                row, end = _DECODER.raw_decode(self.text, self.position)
                self.position = end
                return _checked(row, line)
            except json.JSONDecodeError as error:
                # what is wrong far from the end of what was read does not become right by reading on
                torn = error.msg.startswith("Unterminated") or error.pos > len(self.text) - MARGIN
                if torn and self._more():
                    continue
                ahead = self.text.count("\n", self.position, error.pos)
                at = Line(line.place, line.file, line.number + ahead)
                raise at.error("data.json", **self.near(error.pos, error.msg)) from None
            except (ValueError, RecursionError) as error:
                wrong = line.error("data.json", **self.near(self.position, _why(error)))
                try:
                    _, self.position = _LENIENT.raw_decode(self.text, self.position)
                except json.JSONDecodeError:
                    if self._more():
                        continue
                    raise wrong from None
                except RecursionError:
                    raise wrong from None
                return wrong

    def near(self, position: int, what: str) -> dict[str, Any]:
        """Return the parameters that show a place in the text."""
        begin = self.text.rfind("\n", 0, position) + 1
        shown = self.text[begin : begin + SHOWN].split("\n")[0].strip()
        return {"column": position - begin + 1, "what": what, "text": shown}

    def _more(self) -> bool:
        """Read on; return False at the end of the file."""
        line = self.line
        if self.over:
            return False
        if len(self.text) - self.position > LONGEST_LINE:
            raise line.error("data.long_line", limit=LONGEST_LINE >> 20)
        raw = self.file.read(CHUNK)
        self.over = len(raw) < CHUNK
        try:
            more = self.decoder.decode(raw, self.over)
        except UnicodeDecodeError as error:
            ahead = self.text.count("\n", self.position) + raw.count(b"\n", 0, error.start)
            at = Line(line.place, line.file, line.number + ahead)
            raise at.error("data.not_utf8", byte=raw[error.start], encoding=self.encoding) from None
        # what is behind the line of the position is no longer needed
        begin = self.text.rfind("\n", 0, self.position) + 1
        self.text = self.text[begin:] + more
        self.position, self.counted = self.position - begin, self.counted - begin
        return True


def text_rows(path: File, place: str, encoding: str, after: int = 0) -> Iterator[Item]:
    """Read plain text: each line that is not blank is a row with the column `text`."""
    with opened(path, place) as file:
        for line, text in text_lines(file, path.name, place, encoding, after):
            if isinstance(text, InputError):
                yield line, text
            elif text.strip():
                yield line, {"text": text.rstrip("\r\n")}


def _why(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _checked(row: Any, line: Line) -> Raw | InputError:
    return row if isinstance(row, dict) else line.error("data.not_object", found=type_name(row))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> Raw:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the key {twice(key for key, _ in pairs)} stands twice")
    return row


_LENIENT = json.JSONDecoder(parse_int=str)
"""Finds the end of an object whatever is wrong with its values."""
_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_key_twice)
