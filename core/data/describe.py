"""Which data sets a folder has: dataset_info.json, and the files beside it. Cold: the board lists sets with it."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from core.errors import InputError, Problem
from core.formats import Format
from core.schema import variants

FILE = "dataset_info.json"
SUFFIXES = (".json", ".jsonl")
NOT_YET = {
    "ranking": "data.ranking",
    "chosen": "data.ranking",
    "rejected": "data.ranking",
    "kto_tag": "data.feedback",
    "images": "data.media",
    "videos": "data.media",
    "audios": "data.media",
    "tools": "data.tools",
}
"""What an entry may ask for that no stage can do with it yet, and the code that says so."""
HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class Described:
    """One set of a data folder. `problem` is why it can't be trained on; it counts only when the set is chosen."""

    name: str
    path: Path | None = None
    format: str = ""
    """The kind of its format; empty for a file without a description, whose first row tells."""
    rows: int = 0
    """Use only so many rows (num_samples); 0: all."""
    names: Format | None = None
    """The format with the column names of this set."""
    problem: Problem | None = None


def sets(folder: Path, place: str = "data.folder") -> list[Described]:
    """Return the sets of a data folder: the described ones in their order, then files that no entry names.

    Raises InputError at `place` when dataset_info.json itself can't be read.
    """
    described = [_described(folder, name, entry) for name, entry in _entries(folder, place).items()]
    taken = {d.path for d in described}
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.name != FILE and p not in taken)
    return described + [Described(p.name, p) for p in files]


def find(folder: Path, name: str, place: str) -> Described:
    """Return the set of this name; raise InputError at `place` when there is none or it can't be trained on."""
    known = {d.name: d for d in sets(folder, f"{place.partition('.')[0]}.folder")}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        usable = near or [d.name for d in known.values() if not d.problem][:10]
        raise InputError("data.unknown_set", place, name=name, folder=str(folder), known=", ".join(usable))
    found = known[name]
    if found.problem:
        raise InputError(found.problem.code, place, **found.problem.params)
    return found


def _entries(folder: Path, place: str) -> dict[str, Any]:
    try:
        text = (folder / FILE).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise InputError("data.description", place, file=FILE, line=1, what=str(error)) from None
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError("data.description", place, file=FILE, line=error.lineno, what=error.msg) from None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise InputError("data.description", place, file=FILE, line=1, what="not an object of objects")
    return entries


def _described(folder: Path, name: str, entry: dict[str, Any]) -> Described:
    def bad(code: str, **params: Any) -> Described:
        return Described(name, format=kind, problem=Problem(code, params={"name": name, **params}))

    kind = str(entry.get("formatting", "alpaca"))
    formats = variants("core.formats")
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if any(entry.get(hub) for hub in HUBS) and not entry.get("file_name"):
        return bad("data.hub")
    if kind not in formats:
        return bad("data.format", given=kind, known=", ".join(formats))
    file, rows = entry.get("file_name"), entry.get("num_samples") or 0
    if not isinstance(file, str) or not file or not isinstance(columns, dict) or not isinstance(tags, dict):
        return bad("data.entry", what="file_name must be a text, columns and tags objects")
    if not isinstance(rows, int) or rows < 0:
        return bad("data.entry", what="num_samples must be a whole number")
    for key in (*columns, *(key for key in ("ranking",) if entry.get(key))):
        if key in NOT_YET:
            return bad(NOT_YET[key])
    given = {key: value for key, value in {**columns, **tags}.items() if value is not None}
    try:
        names = cast(Format, formats[kind].model_validate(given))
    except ValidationError as error:
        detail = error.errors()[0]
        return bad("data.entry", what=f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}")
    return Described(name, folder / file, kind, rows, names)
