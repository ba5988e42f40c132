"""Which data sets a folder has: dataset_info.json, and the files beside it. Cold: the board lists sets with it."""

from __future__ import annotations

import codecs
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from core.errors import InputError, Problem
from core.formats import Format
from core.schema import variants
from core.workspace import HUB_ID

FILE = "dataset_info.json"
TWICE = "\ufdd0twice"
"""Key under which an object that was read tells its names that stand twice; none of them can be this."""
SPACE = re.compile(r"[\s,]*")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
URL = re.compile(r"(https|s3|gs|gcs|hf)://\S+")
HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url")
KNOWN = (
    "file_name", "cloud_file_name", *HUBS, "formatting", "columns", "tags", "ranking", "subset", "split", "folder",
    "num_samples", "encoding",
)  # fmt: skip
"""What an entry may have: LLaMA-Factory's fields, and the encoding of text files that are not UTF-8."""


@dataclass(frozen=True)
class Described:
    """One set of a data folder. `problem` is why it can't be used; it counts only when the set is chosen."""

    name: str
    file: str = ""
    """A file or a folder of files in the data folder."""
    hub: str = ""
    """Id of a data set on the hub."""
    url: str = ""
    subset: str = ""
    split: str = "train"
    folder: str = ""
    """A folder inside a hub set."""
    rows: int = 0
    """Use only so many rows (num_samples); 0: all."""
    names: Format | None = None
    """The format with the column names of this set; None: the first rows tell."""
    encoding: str = "utf-8"
    problem: Problem | None = None


def sets(folder: Path, place: str = "data.folder") -> list[Described]:
    """Return the sets of a data folder: the described ones in their order, then files that no entry names.

    Raises InputError at `place` when dataset_info.json itself can't be read.
    """
    described = [set_from(name, entry, line) for name, (entry, line) in read(folder, place).items()]
    taken = {d.file for d in described}
    return described + [Described(path.name, path.name) for path in data_files(folder) if path.name not in taken]


def data_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold rows, by name."""
    return sorted(p for p in folder.iterdir() if suffix(p.name) in SUFFIXES and p.name != FILE)


def suffix(name: str) -> str:
    """Return the suffix that tells what a file holds; that of a packed one stands before .gz."""
    return Path(name.lower().removesuffix(".gz")).suffix


def find(folder: Path, name: str, place: str) -> Described:
    """Return the set of this name; raise InputError at `place` when there is none or it can't be used.

    A name may also be that of its file, a hub id (owner/name) or the address of a file.
    """
    listed = sets(folder, f"{place.partition('.')[0]}.folder")
    known = {d.file: d for d in reversed(listed) if d.file} | {d.name: d for d in listed}
    if name not in known:
        inside = folder / name
        if inside.is_dir() and inside.resolve().is_relative_to(folder.resolve()) and data_files(inside):
            return Described(name, name)
        if inside.is_file() and suffix(name) not in SUFFIXES:
            raise InputError("data.suffix", place, file=name, known=", ".join(SUFFIXES))
        if URL.fullmatch(name):
            return Described(name, url=name)
        if HUB_ID.fullmatch(name) and "/" in name and not (folder / name).exists():
            return Described(name, hub=name)
        near = difflib.get_close_matches(name, known, 1, 0.5)
        usable = near or [d.name for d in listed if not d.problem][:10]
        raise InputError("data.unknown_set", place, name=name, folder=str(folder), known=", ".join(usable))
    found = known[name]
    if found.problem:
        raise InputError(found.problem.code, place, **found.problem.params)
    return found


def read(folder: Path, place: str) -> dict[str, tuple[Any, int]]:
    """Return name -> (entry, its line) of dataset_info.json; a name that stands twice has the entry None."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (UnicodeDecodeError, OSError) as error:
        raise InputError("data.description", place, file=FILE, line=1, what=str(error)) from None
    try:
        entries = json.loads(text, object_pairs_hook=_once)
    except (json.JSONDecodeError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise InputError("data.description", place, file=FILE, line=line, what=what) from None
    if not isinstance(entries, dict):
        raise InputError("data.description", place, file=FILE, line=1, what="not an object of objects")
    lines, doubled = _lines(text), entries.pop(TWICE, ())
    return {name: (None if name in doubled else entry, lines[name]) for name, entry in entries.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; the names that stand twice in it are listed under TWICE."""
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    names = Counter(name for name, _ in pairs)
    return made | {TWICE: [name for name, count in names.items() if count > 1]}


def _lines(text: str) -> dict[str, int]:
    """Return the line of each name of the outermost object of a JSON text that is in order."""
    decoder, found, at = json.JSONDecoder(), dict[str, int](), text.index("{") + 1
    while (begin := SPACE.match(text, at).end()) < len(text) and text[begin] == '"':  # type: ignore[union-attr]
        name, at = decoder.raw_decode(text, begin)
        found.setdefault(name, text.count("\n", 0, begin) + 1)
        at = SPACE.match(text, text.index(":", at) + 1).end()  # type: ignore[union-attr]
        _, at = decoder.raw_decode(text, at)
    return found


def set_from(name: str, entry: Any, line: int = 1, *, guess: bool = False) -> Described:
    """Return the set that an entry describes; what is wrong with it becomes its problem.

    guess: the entry says nothing of the format, the first rows are to tell it.
    """
    try:
        problem = next(_wrong(name, entry), None)
        names = None if problem else _names(entry)
    except ValidationError as error:
        detail = error.errors()[0]
        near = _nearest(str(detail["loc"][-1]), list(variants("core.formats")[_kind(entry)].model_fields))
        problem, names = ("data.entry", {"what": f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}{near}"}), None
    if problem:
        code, params = problem
        return Described(name, problem=Problem(code, params={"name": name, "line": line, **params}))
    return Described(
        name,
        file=entry.get("file_name") or "",
        hub=entry.get("hf_hub_url") or "",
        url=entry.get("cloud_file_name") or "",
        subset=entry.get("subset") or "",
        split=entry.get("split") or "train",
        folder=entry.get("folder") or "",
        rows=entry.get("num_samples") or 0,
        names=None if guess else names,
        encoding=entry.get("encoding") or "utf-8",
    )


def _wrong(name: str, entry: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is wrong with an entry: (code, parameters)."""
    if entry is None:
        yield "data.entry", {"what": "the name stands twice"}
    if not isinstance(entry, dict):
        yield "data.entry", {"what": "not an object"}
        return
    for part in (entry, entry.get("columns"), entry.get("tags")):
        if isinstance(part, dict) and TWICE in part:
            yield "data.entry", {"what": f"{part[TWICE][0]} stands twice"}
    if not name.strip() or len(name) > 200 or any(ord(char) < 32 for char in name):
        yield "data.set_name", {}
    for key in entry:
        if key not in KNOWN:
            yield "data.entry", {"what": f"{key}?{_nearest(key, KNOWN)}"}
    for key in ("file_name", "cloud_file_name", *HUBS, "subset", "split", "folder", "encoding", "formatting"):
        if not isinstance(entry.get(key) or "", str):
            yield "data.entry", {"what": f"{key}: not a text"}
    if isinstance(entry.get("encoding"), str) and not _is_encoding(entry["encoding"]):
        yield "data.entry", {"what": f"encoding: {entry['encoding']}? (utf-8, cp1251, gb18030 …)"}
    for key in ("columns", "tags"):
        if not isinstance(entry.get(key) or {}, dict):
            yield "data.entry", {"what": f"{key}: not an object"}
    given = entry.get("columns")
    named: dict[str, Any] = given if isinstance(given, dict) else {}
    for one, other in (("prompt", "response"), ("chosen", "rejected")):
        if named.get(one) and named.get(one) == named.get(other):
            yield "data.entry", {"what": f"{one} and {other} are one column, {named[one]}"}
    rows = entry.get("num_samples") or 0
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        yield "data.entry", {"what": "num_samples must be a whole number"}
    if not isinstance(entry.get("ranking") or False, bool):
        yield "data.entry", {"what": "ranking must be true or false"}
    if _kind(entry) not in variants("core.formats"):
        yield "data.format", {"given": _kind(entry), "known": ", ".join(variants("core.formats"))}
    url = entry.get("cloud_file_name")
    if url and not URL.fullmatch(url):
        yield "data.url", {"url": url}
    if not any(entry.get(key) for key in ("file_name", "cloud_file_name", "hf_hub_url")):
        other = next((key for key in HUBS if entry.get(key)), "")
        yield ("data.other_hub", {"field": other}) if other else ("data.entry", {"what": "no file_name"})


def _kind(entry: dict[str, Any]) -> str:
    return str(entry.get("formatting") or "alpaca")


def _names(entry: dict[str, Any]) -> Format:
    """Return the format with the names that an entry gives; what it gives none keeps its default."""
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    given = {key: value for key, value in {**columns, **tags}.items() if value is not None}
    if entry.get("ranking"):
        given["ranking"] = True
    return cast(Format, variants("core.formats")[_kind(entry)].model_validate(given))


def _is_encoding(name: str) -> bool:
    try:
        # bytes.decode refuses what is no text; of UTF-16 and its kin no line could be found
        return codecs.lookup(name)._is_text_encoding and "\n".encode(name) == b"\n"
    except LookupError:
        return False


def _nearest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, known, 1, 0.6)
    return f" → {near[0]}" if near else ""
