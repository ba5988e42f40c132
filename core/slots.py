"""The places of a machine where runs compute: one for each GPU, one for the CPU, and who is at which. Light."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from core import config, runs
from core.errors import InputError
from core.files import read_json
from core.models import room
from core.sections import Hardware


@dataclass(frozen=True)
class Wish:
    """What a run needs: `count` of the slots that would do."""

    slots: tuple[str, ...]
    """GPUs as CUDA_VISIBLE_DEVICES names them, the one that torch would take first in front; or cpu, or mps."""
    count: int = 1


@cache
def gpus() -> tuple[str, ...]:
    """Return the GPUs that may be used here."""
    return tuple(room.devices(Hardware()))


def offered(job: config.Job) -> Wish:
    """Return the wish of a job: the GPUs that it names, or as many of all as it has processes; else one slot."""
    if job.hardware.cluster:
        return Wish((job.hardware.cluster,))
    found = tuple(room.devices(job.hardware))
    if found:
        processes = job.launcher.count(len(found)) if isinstance(job, config.Run) else 1
        return Wish(found, len(found) if job.hardware.devices else min(processes, len(found)))
    apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    device = job.hardware.device
    return Wish(("mps",) if device == "mps" or (device == "auto" and apple) else ("cpu",))


def wanted(folder: Path) -> Wish:
    """Return the wish of a run. Raises InputError for one of another version."""
    return _wanted(folder, (folder / "run.yaml").stat().st_mtime_ns)


def taken(workspace: Path) -> dict[str, list[str]]:
    """Return slot -> names of the runs that live there, those included that were started without the queue."""
    found: dict[str, list[str]] = {}
    for path in (workspace / "runs").glob(f"*/{runs.PROCESS}"):
        folder = path.parent
        if (folder / runs.EXIT).exists() or runs.supervisor(folder) is None:
            continue
        try:
            wish = wanted(folder)
        except (InputError, OSError):
            continue  # of another version, or deleted just now
        given = str(read_json(path).get("gpus") or "").split(",")
        named = [name for name in given if name in wish.slots and name in gpus()]
        for slot in named[: wish.count] or wish.slots[: wish.count]:
            found.setdefault(slot, []).append(folder.name)
    return found


def free(wish: Wish, busy: Mapping[str, list[str]], at_once: int, closed: Collection[str] = ()) -> tuple[str, ...]:
    """Return the slots for a run, those with the fewest runs; () where too few have room for one more.

    closed: slots that are kept for a run that waits longer.
    """
    load = {slot: len(busy.get(slot, [])) for slot in wish.slots if slot not in closed}
    ready = sorted((slot for slot in load if load[slot] < at_once), key=lambda slot: load[slot])
    return tuple(ready[: wish.count]) if len(ready) >= wish.count else ()


@lru_cache(maxsize=512)
def _wanted(folder: Path, written: int) -> Wish:
    job = runs.settings(folder)
    wish = offered(job)
    # a chat server only waits for questions: it takes memory, which counts on a GPU, and no time of the CPU
    return Wish((), 0) if isinstance(job, config.Serving) and not set(wish.slots) & set(gpus()) else wish
