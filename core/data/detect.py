"""Telling the format of rows from their columns, so that a file needs no description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.formats import Format, Raw
from core.formats.alpaca import Alpaca
from core.formats.completion import Completion
from core.formats.messages import OpenAI, ShareGPT
from core.formats.plain import Text
from core.formats.preference import Preference

ASKED = ("instruction", "question", "prompt", "query", "problem", "user", "input", "text", "sentence", "article")
"""Names in use for what is asked, the surest first."""
ANSWERED = (
    "output", "answer", "response", "completion", "solution", "assistant", "target", "summary", "canonical_solution",
    "label", "category",
)  # fmt: skip
BESIDE = {"query": ("input", "context"), "history": ("history",), "system": ("system", "system_prompt")}
"""Names of what may stand beside question and answer."""
PARTS = ("prompt", "completion", "chosen", "rejected")
"""Columns whose messages are a part of a conversation only."""
PLAIN = ("text", "content", "raw_content")
LIKED = ("true", "false", "1", "0", "1.0", "0.0")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "assistant": "assistant",
         "user": "user", "system": "system"}  # fmt: skip


def detect(rows: Sequence[Raw]) -> Format | None:
    """Return the format that first rows of a file have, with the names of its columns; None where none fits."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    first = {column: next((r[column] for r in rows if r.get(column) is not None), None) for column in columns}
    others = {column: value for column, value in first.items() if column != "label"}
    if (_messages(others) or _question(others)) and all(str(row.get("label")).lower() in LIKED for row in rows):
        first["label"] = True  # as text or number, too: CSV and Parquet files have it so
    return _messages(first) or _comparison(first) or _question(first) or _plain(first) or _named(first)


def wrapped(raw: Raw) -> str:
    """Return the column in which the rows themselves seem to lie, "" for none."""
    lists = (key for key, value in raw.items() if isinstance(value, list) and value and isinstance(value[0], dict))
    return next(lists, "")


def _messages(first: Raw) -> Format | None:
    """Return the format of rows with a list of messages, and the roles in it."""
    if all(isinstance(first.get(column), list) and len(first[column]) > 1 for column in ("chosen", "rejected")):
        return None  # two whole conversations
    for column, value in first.items():
        if not isinstance(value, list) or not value or not isinstance(value[0], dict) or column in PARTS:
            continue
        kinds = [
            k for k in (OpenAI, ShareGPT) if {_default(k, "role_tag"), _default(k, "content_tag")} <= set(value[0])
        ]
        if not kinds:
            continue
        kind = kinds[0]
        given: dict[str, Any] = {} if column == _default(kind, "messages") else {"messages": column}
        for message in filter(lambda item: isinstance(item, dict), value):
            role = str(message.get(_default(kind, "role_tag")))
            tag = f"{ROLES.get(role, '')}_tag"
            if tag in kind.model_fields and role != _default(kind, tag):
                given[tag] = role
        if {"chosen", "rejected"} <= first.keys():
            given["ranking"] = True
        if "label" in first and isinstance(first["label"], bool):
            given["kto_tag"] = "label"
        return kind.model_validate(given)
    return None


def _comparison(first: Raw) -> Format | None:
    """Return the format of rows with a better and a worse answer."""
    if isinstance(first.get("output"), list) and isinstance(first.get("instruction"), str):
        return Alpaca(ranking=True)
    if not {"chosen", "rejected"} <= first.keys():
        return None
    asked = _one_of(first, ASKED)
    if asked == "instruction":
        return Alpaca(ranking=True)
    return Preference(prompt=asked) if asked and asked != "prompt" else Preference()


def _question(first: Raw) -> Format | None:
    """Return the format of rows with a question and an answer."""
    if {"prompt", "completion"} <= first.keys():
        return Completion()
    asked, answered = _one_of(first, ASKED), _one_of(first, ANSWERED)
    if asked is None or answered is None or asked == answered:
        return None
    given = {} if asked == "instruction" else {"prompt": asked}
    if answered != "output":
        given["response"] = answered
    if "kto_tag" not in first and isinstance(first.get("label"), bool) and answered != "label":
        given["kto_tag"] = "label"
    columns = {column.lower(): column for column in first}
    for field, names in BESIDE.items():
        column = next((columns[name] for name in names if name in columns), "")
        fits = isinstance(first.get(column), list if field == "history" else str)
        if fits and column not in (asked, answered, _default(Alpaca, field)):
            given[field] = column
    return Alpaca.model_validate(given)


def _plain(first: Raw) -> Format | None:
    """Return the format of texts, by one of the usual names."""
    named = _one_of(first, PLAIN)
    if named is None:
        return None
    return Text() if named == "text" else Text(prompt=named)


def _named(first: Raw) -> Format | None:
    """Return the format that a telling name stands for, though what is in the column does not fit it."""
    known: dict[str, type[Format]] = {"messages": OpenAI, "conversations": ShareGPT, "instruction": Alpaca}
    return next((kind.model_validate({}) for name, kind in known.items() if name in first), None)


def _one_of(first: Raw, names: Sequence[str]) -> str | None:
    """Return the column of texts by the first of these names, however it is capitalised."""
    columns = {column.lower(): column for column in first}
    found = (columns[name] for name in names if name in columns)
    return next((column for column in found if isinstance(first[column], str)), None)


def _default(kind: type[Format], field: str) -> str:
    return str(kind.model_fields[field].default)
