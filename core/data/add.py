"""Writing descriptions: a file becomes a set of a data folder, with its entry in dataset_info.json. Cold."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.data.describe import FILE, SUFFIXES, TWICE, find, read, set_from, suffix
from core.data.inspect import PLACE, entry
from core.data.rows import opening
from core.errors import InputError

NAME = re.compile(r"\w[\w .-]{0,99}")
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that can be no file on some systems."""


def add(file: Path, folder: Path, name: str = "", given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Make a file a set of a data folder, to which it is copied if it is not there; return {"name", "entry", "file"}.

    The description is what the first rows tell, and what is `given` above it. The name is that of the file unless
    another is given. Raises InputError where the name is taken or no name, the file can't be read, or the description
    does not fit its rows; then nothing has changed.
    """
    if not file.is_file():
        raise InputError("path.missing", PLACE, path=str(file))
    if suffix(file.name) not in SUFFIXES:
        raise InputError("data.suffix", PLACE, file=file.name, known=", ".join(SUFFIXES))
    name = name or file.name.partition(".")[0]
    safe = not file.name.startswith((".", "-")) and file.name != FILE
    for given_name, fits in ((name, NAME.fullmatch(name)), (file.name, safe)):
        if not fits or RESERVED.fullmatch(given_name):
            raise InputError("data.bad_name", PLACE, name=given_name)
    described = _described(name, file, given or {})
    names, rows = opening(described, file.parent, PLACE)
    for line, raw in rows:  # the first row that is in order: the description must fit it
        if not isinstance(raw, InputError):
            names.row(raw, line)
            break
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{FILE}.lock"):
        made = _write(file, folder, name, _entry(file, names, given or {}))
        return {"name": name, "file": made["file_name"], "entry": made}


def _entry(file: Path, names: Any, given: dict[str, Any]) -> dict[str, Any]:
    made = entry(file.name, names)
    return made | {key: value for key, value in given.items() if key in ("encoding", "num_samples")}


def _described(name: str, file: Path, given: dict[str, Any]) -> Any:
    """Return the set as it would be described; without a format the first rows tell it."""
    told = {key: value for key, value in given.items() if value not in ("", None, {})}
    described = set_from(name, {"file_name": file.name, **told})
    if described.problem:
        raise InputError(described.problem.code, PLACE, **described.problem.params)
    if not {"formatting", "columns", "tags", "ranking"} & told.keys():
        return set_from(name, {"file_name": file.name, **told}, guess=True)
    return described


def _write(file: Path, folder: Path, name: str, made: dict[str, Any]) -> dict[str, Any]:
    place, known = folder / made["file_name"], read(folder, PLACE)
    for taken, (entry_, line) in known.items():
        if entry_ is None or TWICE in json.dumps(entry_, ensure_ascii=False):  # to write it anew would lose one of both
            raise InputError("data.description", PLACE, file=FILE, line=line, what=f"{taken} stands twice")
    if name in known or ((folder / name).exists() and (folder / name).resolve() != file.resolve()):
        raise InputError("data.name_taken", PLACE, name=name, folder=str(folder))
    if place.resolve() != file.resolve():
        if place.exists():  # another file of the same name: this one takes that of the set
            endings = "".join(Path(file.name).suffixes[-2:] if file.name.lower().endswith(".gz") else [file.suffix])
            place, made = folder / f"{name}{endings}", {**made, "file_name": f"{name}{endings}"}
        if place.exists():
            raise InputError("data.name_taken", PLACE, name=place.name, folder=str(folder))
        aside = folder / f".{file.name}.{os.getpid()}"
        shutil.copyfile(file, aside)
        aside.replace(place)
    aside = folder / f".{FILE}.{os.getpid()}"
    entries = {known_name: entry_ for known_name, (entry_, _) in known.items()}
    aside.write_text(json.dumps({**entries, name: made}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(folder / FILE)
    find(folder, name, PLACE)
    return made
