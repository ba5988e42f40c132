"""How a row of a data file becomes a conversation: one file, one format.

The names are those of LLaMA-Factory's dataset_info.json: a format's fields are the `columns` and `tags` of an entry,
each with the column name it has when the entry does not say otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from core.errors import InputError
from core.schema import Spec

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

UNFIT = re.compile("[\0\ud800-\udfff]")
"""Characters that no tokenizer takes: NUL, and halves of surrogate pairs."""
JSON_TYPES = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string"}
JSON_TYPES |= {list: "array", dict: "object"}


@dataclass(frozen=True)
class Line:
    """Where a row stands, and which setting chose its file: what every message about a row must tell."""

    place: str
    file: str
    number: int

    def error(self, code: str, **params: Any) -> InputError:
        return InputError(code, self.place, file=self.file, line=self.number, **params)


class Format(Spec):
    """A format of rows; `kind` is the `formatting` of dataset_info.json."""

    kind: str
    mark: ClassVar[str]
    """The column by which a file without a description is known to have this format."""

    def conversation(self, row: dict[str, Any], line: Line) -> list[Message]:
        """Return the conversation of a row, checked: a system message or none, then user and assistant in turn.

        Raises InputError with file, line, column and what is wrong.
        """
        raise NotImplementedError


def text(row: dict[str, Any], column: str, line: Line, *, optional: bool = False) -> str:
    """Return the text in a column; "" for an optional one that is absent or null."""
    if column not in row and not optional:
        raise line.error("data.no_column", column=column, columns=", ".join(row))
    value = row.get(column)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise line.error("data.not_text", column=column, found=JSON_TYPES[type(value)])
    if UNFIT.search(value):
        raise line.error("data.character", column=column)
    return value


def rows_of(row: dict[str, Any], column: str, line: Line) -> list[Any]:
    """Return the list in a column."""
    if column not in row:
        raise line.error("data.no_column", column=column, columns=", ".join(row))
    value = row[column]
    if not isinstance(value, list) or not value:
        raise line.error("data.not_list", column=column, found="[]" if value == [] else JSON_TYPES[type(value)])
    return value
