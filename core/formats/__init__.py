"""How a row of a data file becomes the one standard Row: one file, one format.

The names are those of LLaMA-Factory's dataset_info.json: a format's fields are the `columns` and `tags` of an entry,
each with the column name it has when the entry does not say otherwise.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import chain, islice, product
from typing import Any

from core.errors import InputError
from core.schema import Spec

Message = dict[str, Any]
"""{"role": system | user | assistant | tool, "content": text}; an assistant's may also have tool_calls,
reasoning_content, and weight (0: not learned). The shape that chat templates know."""
Raw = dict[str, Any]
"""A row as its file has it: column -> value."""

MEDIA = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}
"""Columns of files that belong to a row, and the marker that says where in its texts each is meant."""
PLACES = {"images": "\ufdd1", "videos": "\ufdd2", "audios": "\ufdd3"}
"""What stands in a text for a file while it is rendered: noncharacters of Unicode, which no text may have."""
UNFIT = re.compile("[\0\ud800-\udfff\ufdd0-\ufdd3]")
"""Characters that no tokenizer takes: NUL, halves of surrogate pairs; U+FDD0 to U+FDD3 are ours (SEAM, PLACES)."""
ROWS = 40
"""Bits that a place in a set has for the number in a file; the number of the file stands above them."""
NAMED = 20
"""Columns that a message names at most."""
DEEPEST = 64
"""Levels of objects in objects: of a tool's schema, or of the arguments of a call."""
JSON_TYPES = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string"}
JSON_TYPES |= {list: "array", dict: "object"}


def type_name(value: Any) -> str:
    """Return the JSON name of a value's type; Python's own for what other files hold (dates, bytes)."""
    return JSON_TYPES.get(type(value), type(value).__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """What every format is brought to, and all that the rest of the data worker knows of a row."""

    prompt: list[Message]
    """The turns before the answer, without the system message."""
    response: list[Message]
    """The answer; of a comparison the better and the worse one."""
    system: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """JSON schemas of the functions that may be called."""
    media: dict[str, list[str]] = field(default_factory=dict)
    """images, videos, audios -> paths, in the order of their markers."""
    label: bool | None = None
    """Whether the answer was liked; None where nobody was asked."""
    plain: bool = False
    """A text without turns: it is learned as it stands, no template is laid around it."""

    @property
    def kind(self) -> str:
        """What it can teach: text, answer, ranking or feedback."""
        if self.plain:
            return "text"
        if self.label is not None:
            return "feedback"
        return "ranking" if len(self.response) == 2 else "answer"

    def messages(self, answer: int = 0) -> list[Message]:
        """Return the whole conversation, ended by the answer of this number."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.prompt, self.response[answer]]


@dataclass(frozen=True, slots=True)
class Line:
    """Where a row stands, and which setting chose its file: what every message about a row must tell."""

    place: str
    file: str
    number: int
    item: int = 0
    """Number of the row in a list; 0 where a row is a line."""
    source: int = 0
    """Number of the file in a folder of them, from 0."""

    @property
    def row(self) -> int:
        """What a reader can go on behind: the number of the line, or of the row in a list; and of its file."""
        return (self.source << ROWS) + (self.item or self.number)

    def error(self, code: str, **params: Any) -> InputError:
        return InputError(code, self.place, file=self.file, line=self.number, **params)


class Format(Spec):
    """A format of rows; `kind` is the `formatting` of dataset_info.json. Fields are names of columns."""

    kind: str
    system: str = "system"
    tools: str = "tools"
    images: str = "images"
    videos: str = "videos"
    audios: str = "audios"
    chosen: str = "chosen"
    rejected: str = "rejected"
    kto_tag: str = "kto_tag"
    ranking: bool = False
    """Whether rows compare a better answer with a worse one."""

    def row(self, raw: Raw, line: Line) -> Row:
        """Return the standard row. Raises InputError with file, line, column and what is wrong."""
        raise NotImplementedError

    def settled(self, raw: Raw) -> Format:
        """Return the format that is meant, where a description alone leaves that open and a first row tells."""
        return self

    def built(self, raw: Raw, line: Line, prompt: list[Message], response: list[Message], system: str = "") -> Row:
        """Put a row together: what all formats have in common is read and checked here."""
        system = system or text(raw, self.system, line, optional=True)
        told = [kind for kind in MEDIA if raw.get(getattr(self, kind)) is not None]
        media = {kind: paths for kind in told if (paths := _paths(raw, getattr(self, kind), line))}
        told += [kind for kind in MEDIA if kind not in told and _has_part(raw, kind)]
        row = Row(prompt, response, system, _tools(raw, self.tools, line), media, label(raw, self.kto_tag, line))
        _check_markers(row, told, line)
        return row

    def pair(self, raw: Raw, line: Line) -> list[Message]:
        """Return the better and the worse answer; each a text or a message in the words of this format."""
        both = [self.answer(raw, column, line) for column in (self.chosen, self.rejected)]
        return apart(both, line)

    def answer(self, raw: Raw, column: str, line: Line) -> Message:
        """Return the answer in a column."""
        return {"role": "assistant", "content": text(raw, column, line)}


def apart(both: list[Message], line: Line) -> list[Message]:
    """Return two answers; raise InputError where there is nothing to choose between them."""
    if both[0] == both[1]:
        raise line.error("data.same_answers")
    return both


def columns(raw: Raw) -> str:
    """Return the names of the first columns of a row, for a message."""
    return ", ".join(name[:40] for name in islice(raw, NAMED))


def text(raw: Raw, column: str, line: Line, *, optional: bool = False) -> str:
    """Return the text in a column; "" for an optional one that is absent or null."""
    value = raw.get(column)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        if column not in raw:
            raise line.error("data.no_column", column=column, columns=columns(raw))
        raise line.error("data.not_text", column=column, found=type_name(value))
    if UNFIT.search(value):
        raise line.error("data.character", column=column)
    return value


def items(raw: Raw, column: str, line: Line) -> list[Any]:
    """Return the list in a column; there must be something in it."""
    if column not in raw:
        raise line.error("data.no_column", column=column, columns=columns(raw))
    value = raw[column]
    if not isinstance(value, list) or not value:
        raise line.error("data.not_list", column=column, found="[]" if value == [] else type_name(value))
    return value


def label(raw: Raw, column: str, line: Line) -> bool | None:
    """Return whether an answer was liked; None where the row has no such column.

    True and false, 1 and 0 and their texts are understood: CSV files have nothing else.
    """
    if column not in raw:
        return None
    value = raw[column]
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if isinstance(value, bool | int | float | str) and str(value).strip().lower() in known:
        return known[str(value).strip().lower()]
    raise line.error("data.label", column=column, found=json.dumps(value, default=str)[:40])


def _paths(raw: Raw, column: str, line: Line) -> list[str]:
    """Return the paths in a column: a list of them, or one."""
    value = raw[column]
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise line.error("data.media_paths", column=column)
    return paths


def _tools(raw: Raw, column: str, line: Line) -> list[dict[str, Any]]:
    """Return the tools in a column: a list of schemas, or the JSON text of one, as LLaMA-Factory writes it."""
    value = raw.get(column) or []
    value = inner(value, column, line)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise line.error("data.tools_json", column=column, what=f"{type_name(value)} ≠ [object, …]")
    return value


def inner(value: Any, column: str, line: Line) -> Any:
    """Return a value of tools or calls, which may be the JSON text of it; no text in it may have unfit characters."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise line.error("data.tools_json", column=column, what=what) from None
    _check_fit(found, column, line)
    return found


def _check_fit(value: Any, column: str, line: Line, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise line.error("data.tools_json", column=column, what="nested too deep")
    if isinstance(value, str) and UNFIT.search(value):
        raise line.error("data.character", column=column)
    if isinstance(value, dict | list):
        parts = chain(value.keys(), value.values()) if isinstance(value, dict) else value
        for part in parts:
            _check_fit(part, column, line, depth + 1)


def _check_markers(row: Row, kinds: list[str], line: Line) -> None:
    """Raise InputError where the texts mention more or fewer media of these kinds than the row has."""
    for kind, answer in product(kinds, range(len(row.response)) if kinds else ()):
        marker, given = MEDIA[kind], len(row.media.get(kind, []))
        wanted = sum(str(message["content"]).count(marker) for message in row.messages(answer))
        if wanted != given:
            raise line.error("data.media_count", column=kind, given=given, marker=marker, wanted=wanted)


def _has_part(raw: Raw, kind: str) -> bool:
    """Return whether a message is made of parts of which one stands for a file of this kind."""
    messages = (item for value in raw.values() if isinstance(value, list) for item in value if isinstance(item, dict))
    parts = (part for message in messages for value in message.values() if isinstance(value, list) for part in value)
    return any(isinstance(part, dict) and part.get("type") == kind[:-1] for part in parts)
