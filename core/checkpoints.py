"""Checkpoints that are whole or absent: written aside, listed with their sums, renamed last; checked before use."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from core.errors import InputError
from core.events import Writer
from core.files import DISK_FULL, flush, publish

MANIFEST = "MANIFEST.json"
REQUIRED = {"trainer_state.json", "scheduler.pt"}
"""Without one of these Trainer resumes all the same, silently on another curve; so it does without the state of the
optimizer and `chances`."""
OPTIMIZER = frozenset({"optimizer.pt"})
NAME = re.compile(r"checkpoint-(\d+)")
FULL = re.compile(
    r"unexpected pos|iostream error|[Nn]o space left|[Qq]uota exceeded|File too large|os error (?:27|28|122)\b"
)
"""How a full disk is told by torch.save and by safetensors, which have no error number."""


@dataclass(frozen=True)
class Store:
    """The checkpoints of one run."""

    run: Path
    """The run folder."""
    data: str
    """Fingerprint of the data the run learns from."""
    keep: int
    processes: int = 1
    """How many learn together."""
    state: frozenset[str] = OPTIMIZER
    """Files with the state of the optimizer."""
    model: str = ""
    """Identity of the model that learns."""
    judge: str = ""
    """Identity of the reward model that it learns from; "" where there is none."""

    @property
    def folder(self) -> Path:
        return self.run / "checkpoints"

    @property
    def writing(self) -> Path:
        """Where Trainer writes: a name that is never taken for a checkpoint."""
        return self.folder / ".writing"

    def publish(self, step: int, best: int = 0) -> Path:
        """Give the checkpoint that Trainer has just written its manifest and its name; delete the oldest ones.

        best: step of one that stays however old it is.
        """
        written = self.writing / f"checkpoint-{step}"
        (written / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
        manifest = {"step": step, "run": self._settings(), "data": self.data, "model": self.model, "judge": self.judge,
                    "processes": self.processes, "state": sorted(self.state), "files": _sums(written)}  # fmt: skip
        text = json.dumps(manifest | {"sum": _digest(manifest)}, indent=1)
        (written / MANIFEST).write_text(text, encoding="utf-8")
        flush(written)
        publish(written, self.folder / written.name)
        for old in _numbered(self.folder)[self.keep :]:
            if old.name != f"checkpoint-{best}":
                _delete(old)
        return self.folder / written.name

    def newest(self, events: Writer) -> tuple[Path, int] | None:
        """Return (the newest checkpoint that is whole, its step), None where there is none.

        Raises InputError when the settings, the data, the model, the reward model or the number of processes have
        changed since it was written.
        """
        self.clear()
        found = newest_good(self.folder, events)
        if found is None:
            return None
        manifest = _manifest(found)
        if "sum" not in manifest:  # earlier versions told no model and no judge, or by less of their files
            manifest |= {"model": self.model, "judge": self.judge}
        if manifest["run"] != self._settings():
            raise InputError("run.changed", run=self.run.name)
        if manifest["data"] != self.data:
            raise InputError("data.changed", "data", run=self.run.name)
        if manifest["model"] != self.model:
            raise InputError("model.changed", "model.path", run=self.run.name)
        if manifest["judge"] != self.judge:
            raise InputError("reward.changed", "stage", run=self.run.name)
        if (before := manifest.get("processes", 1)) != self.processes:
            raise InputError("run.processes", "launcher", run=self.run.name, before=before, now=self.processes)
        return found, manifest["step"]

    def at(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self.folder / f"checkpoint-{step}"

    def check_space(self, size: int, copies: int = 1) -> None:
        """Raise InputError unless so many checkpoints of `size` bytes fit on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < copies * size:
            raise InputError("disk.full", path=str(self.folder), free=in_words(free), needed=in_words(copies * size))

    def clear(self) -> None:
        """Delete what an interrupted save or deletion left."""
        for left in self.folder.glob(".*"):
            shutil.rmtree(left)

    def _settings(self) -> str:
        return hashlib.sha256((self.run / "run.yaml").read_bytes()).hexdigest()


def newest_good(folder: Path, events: Writer | None = None) -> Path | None:
    """Return the newest whole checkpoint in a folder; broken ones that are newer are renamed to bad-checkpoint-N."""
    for checkpoint in _numbered(folder):
        fault = check(checkpoint)
        if not fault:
            return checkpoint
        bad = folder / f"bad-{checkpoint.name}"
        shutil.rmtree(bad, ignore_errors=True)
        checkpoint.rename(bad)
        if events:
            events.write("warning", code="checkpoint.bad", place="", params={"name": checkpoint.name, "what": fault})
    return None


def check(checkpoint: Path) -> str:
    """Return what is wrong with a checkpoint: the name of a file that is missing or not as it was written; else ""."""
    try:
        manifest = _manifest(checkpoint)
        if (told := manifest.pop("sum", "")) and told != _digest(manifest):  # earlier versions told none
            return MANIFEST
        files = manifest["files"]
        needed = REQUIRED | chances(manifest.get("processes", 1)) | set(manifest.get("state", OPTIMIZER))
        if missing := needed - files.keys():
            return min(missing)
        return next((name for name, entry in files.items() if _sum(checkpoint / name) != entry), "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return MANIFEST


def chances(processes: int) -> set[str]:
    """Return the files that hold where the random numbers of each process stand."""
    return {f"rng_state_{rank}.pth" for rank in range(processes)} if processes > 1 else {"rng_state.pth"}


@contextmanager
def telling_full_disk(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn what libraries raise when nothing more can be written into an InputError that says so.

    needed: bytes of the checkpoint that is written there; 0 where it is something else.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        by_number = isinstance(error, OSError) and error.errno in DISK_FULL
        if by_number or FULL.search(str(error)):
            if not needed:
                raise InputError("disk.write", path=str(folder)) from error
            free = in_words(shutil.disk_usage(folder).free)
            raise InputError("disk.checkpoint", path=str(folder), free=free, needed=in_words(needed)) from error
        raise


def in_words(size: int) -> str:
    """Return a number of bytes as a person reads it."""
    for unit, limit in (("MB", 10**9), ("GB", 10**12)):
        if size < limit:
            return f"{size * 1000 / limit:.1f} {unit}"
    return f"{size / 10**12:.1f} TB"


def _numbered(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found, reverse=True)]


def _delete(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is interrupted in this is no checkpoint any more."""
    checkpoint.rename(doomed := checkpoint.with_name(f".{checkpoint.name}.old"))
    shutil.rmtree(doomed)


def _manifest(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sums(folder: Path) -> dict[str, dict[str, Any]]:
    return {str(p.relative_to(folder)): _sum(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
