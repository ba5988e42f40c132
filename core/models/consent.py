"""Consent to the code that a model brings of its own (auto_map): somebody looked at these very bytes and agreed.

A model of a type that transformers does not have runs its code with all the rights of whoever starts it. Two things
are asked for, and neither can come with a model, a workspace or a config: consent, kept by the sha256 of the code in a
file of the user's own, and --remote-code on the command line of the process that is to load it. Cold: nothing here
runs or imports what it reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import InputError

FLAG = "TUNEBOARD_REMOTE_CODE"
"""Set by --remote-code alone; the engine inherits it (runs.environment)."""
REFERENCE = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
"""module.Class, as auto_map names classes of the folder."""
OUTSIDE = re.compile(rb"^[ \t]*from[ \t]*\.[ \t\\\r\n]*\.[. \t\\\r\n]*[\w.]*[ \t]+import\b", re.MULTILINE)
"""An import from the folder above."""
SHORT, ENOUGH = 12, 8
"""Digits of a sha256 that are shown of a consent, and that find it."""


@dataclass(frozen=True)
class Code:
    """The code that a model brings, read once: what was hashed is what is run."""

    folder: Path
    type: str
    """Its model_type."""
    files: Mapping[str, bytes]
    """Every .py file of the folder that can be imported. Those of folders in it are neither read nor run."""
    maps: Mapping[str, Any]
    """Name of a JSON file -> its auto_map."""

    @cached_property
    def sums(self) -> dict[str, str]:
        """Name of a file -> its sha256."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}

    @cached_property
    def sha(self) -> str:
        """The sha256 over all files and what auto_map makes of them."""
        told = json.dumps([self.sums, self.maps], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    @cached_property
    def classes(self) -> dict[str, str]:
        """Auto class -> module.Class, of all files; of a slow and a fast tokenizer the fast one."""
        found: dict[str, str] = {}
        for name, module, cls in _references(self.maps):
            found[name] = f"{module}.{cls}"
        return found


def allow(yes: bool) -> None:
    """Let the code of models run, or not, in what this process starts: what --remote-code means."""
    os.environ.pop(FLAG, None)
    if yes:
        os.environ[FLAG] = "1"


def allowed() -> bool:
    """Say whether this process was started with --remote-code."""
    return os.environ.get(FLAG) == "1"


def read(folder: Path, model_type: str, maps: Mapping[str, Any], place: str) -> Code:
    """Return the code of a model folder; raise InputError for what nobody can agree to: code from elsewhere."""
    try:
        modules = {module for _, module, _ in _references(maps)}
    except (TypeError, ValueError) as error:
        raise InputError("code.elsewhere", place, folder=str(folder), given=str(error)[:80]) from None
    files = {path.name: _content(path, place) for path in sorted(folder.glob("*.py")) if path.stem.isidentifier()}
    if missing := sorted(module for module in modules if f"{module}.py" not in files):
        raise InputError("code.missing", place, folder=str(folder), file=f"{missing[0]}.py")
    if leaving := next((name for name, content in files.items() if OUTSIDE.search(content)), ""):
        raise InputError("code.outside", place, file=str(folder / leaving))
    return Code(folder.resolve(), model_type, files, maps)


def check(code: Code, place: str) -> None:
    """Raise InputError unless somebody agreed to this code and the process was started with --remote-code."""
    folder, command = str(code.folder), f"tuneboard trust {shlex.quote(str(code.folder))}"
    kept = given()
    if code.sha not in kept:
        before = next((entry for entry in reversed(kept.values()) if entry["folder"] == folder), None)
        if before is None:
            raise InputError("model.remote_code", place, folder=folder, type=code.type, files=", ".join(code.files),
                             command=command)  # fmt: skip
        now, then = code.sums.items(), before["files"].items()
        changed = sorted({name for name, _ in now ^ then}) or ["auto_map"]
        raise InputError("code.changed", place, folder=folder, files=", ".join(changed), command=command)
    if not allowed():
        raise InputError("code.flag", place, folder=folder)


def store() -> Path:
    """Return the file that keeps the consents of this user, far from models and workspaces."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "tuneboard" / "trusted-code.json"


def given() -> dict[str, dict[str, Any]]:
    """Return sha256 -> {"folder", "files", "agreed"} of every consent.

    Raises InputError for a file that another user may have written.
    """
    try:
        with store().open(encoding="utf-8") as stream:
            facts = os.fstat(stream.fileno())
            if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise InputError("code.store", file=str(store()))
            return dict(json.load(stream))
    except (OSError, ValueError, TypeError):
        return {}  # what can't be read is no consent


def give(code: Code) -> None:
    """Keep the consent to a model's code."""
    entry = {"folder": str(code.folder), "files": code.sums, "agreed": time.strftime("%Y-%m-%d %H:%M")}
    _write(given() | {code.sha: entry})


def take_back(folder: Path, sha: str) -> list[str]:
    """Forget the consents for a folder, or those whose sha256 begins like this; return the folders they were for."""
    kept, enough = given(), len(sha) >= ENOUGH
    gone = [key for key, entry in kept.items() if entry["folder"] == str(folder) or (enough and key.startswith(sha))]
    _write({key: entry for key, entry in kept.items() if key not in gone})
    return [kept[key]["folder"] for key in gone]


def _references(maps: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (auto class, module, class) of all auto_maps. Raises ValueError or TypeError for what names no such."""
    for told in maps.values():
        # old tokenizers give a list alone
        for name, given_ in (told if isinstance(told, dict) else {"AutoTokenizer": told}).items():
            for reference in given_ if isinstance(given_, list) else [given_]:
                if reference is None:
                    continue
                if not isinstance(reference, str) or not (match := REFERENCE.fullmatch(reference)):
                    raise ValueError(str(reference))
                yield name, match[1], match[2]


def _content(path: Path, place: str) -> bytes:
    """Return what is in a file; raise InputError for a link, a pipe or a folder of that name."""
    with suppress(OSError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return stream.read()
    raise InputError("code.link", place, file=str(path))


def _write(kept: Mapping[str, Any]) -> None:
    """Write the consents aside, for nobody else to read or write, and rename the file."""
    place = store()
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=place.parent, prefix=place.name)  # 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(kept, stream, indent=1)
        os.replace(aside, place)
    except OSError:
        raise InputError("path.not_writable", path=str(place)) from None
