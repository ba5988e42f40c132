"""The queue of a workspace: runs that wait for a device, in an order, started one after another.

A run waits as long as a mark with its place lies in its folder; there is no other list. What the reader chose for the
whole queue stands in `.tuneboard/queue.json`. `python -m core.queue WORKSPACE` starts what has room and ends when
nothing is left to do. Whoever adds a run starts it, and a second one leaves at once, so that it can be killed at any
moment: the next to add a run, to open the board or to look at the queue starts another.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from core import config, events, runs, slots
from core.errors import InputError, Problem
from core.files import DISK_FULL, read_json, write_json
from core.models import consent
from core.schema import Spec
from core.supervisor import QUEUED, TAKEN, signature, take

STATE = ".tuneboard"
WORKER = "queue.process.json"
SECONDS = 0.5
"""Between two looks whether a device is free."""
FAILED = runs.RESUMABLE - {"stopped"}
START_SECONDS = 30.0
"""How long a supervisor may need to come up."""
MOST = 16
"""Runs at once on one device."""


class Rules(Spec):
    """What holds for the whole queue of a workspace."""

    paused: bool = False
    because: str = ""
    """The failed run that paused it; "" where somebody did."""
    on_error: Literal["continue", "stop"] = "continue"
    """Whether a run that fails stops those that wait."""
    at_once: int = Field(default=1, ge=1, le=MOST)
    """Runs at once on one device."""


def rules(workspace: Path) -> Rules:
    """Return the rules of a queue; one whose rules can't be read starts nothing."""
    try:
        return Rules.model_validate_json((workspace / STATE / "queue.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Rules()
    except (ValidationError, UnicodeDecodeError):
        return Rules(paused=True)


def rule(workspace: Path, **changes: Any) -> Rules:
    """Change rules, and start what may start by them. Raises InputError for a value that is none."""
    changed = _rule(workspace, **changes)
    wake(workspace)
    return changed


def pause(workspace: Path, because: str = "") -> None:
    """Start nothing more; what runs goes on. because: the failed run on account of which."""
    _rule(workspace, paused=True, because=because)


def go_on(workspace: Path) -> None:
    """Start what waits."""
    rule(workspace, paused=False, because="")


def add(folders: Sequence[Path], workspace: Path) -> None:
    """Put runs at the end of the queue, in their order, and let it work. One that waits already keeps its place.

    A run that was stopped or failed goes on from its checkpoint. Raises InputError for one that is active or done,
    or no training.
    """
    with edited(workspace):
        for folder in folders:
            if not isinstance(runs.settings(folder), config.Run):
                raise InputError("run.not_training", run=folder.name)
            status = runs.look(folder).status
            if status in runs.ACTIVE:
                raise InputError("run.active", run=folder.name)
            if status == "done":
                raise InputError("run.complete", run=folder.name)
        order = runs.waiting(workspace)
        last = max(order.values(), default=0.0)
        for number, folder in enumerate((one for one in dict.fromkeys(folders) if one not in order), start=1):
            write_json(folder / QUEUED, {"place": last + number, "remote_code": consent.allowed()})
    wake(workspace)


def move(folder: Path, to: int) -> None:
    """Put a waiting run at a place of the queue, from 1; beyond the end means the end."""
    with edited(folder.parents[1]):
        mark, order = read_json(folder / QUEUED), runs.waiting(folder.parents[1])
        if order.pop(folder, None) is None:
            raise InputError("queue.absent", run=folder.name)
        index, places = min(max(to - 1, 0), len(order)), list(order.values())
        below = places[index - 1] if index else min(places, default=0.0) - 2
        above = places[index] if index < len(places) else below + 2
        between = (below + above) / 2
        if below < between < above:
            write_json(folder / QUEUED, mark | {"place": between})
            return
        others = list(order)  # halved too often: number them anew
        for number, other in enumerate([*others[:index], folder, *others[index:]], start=1):
            write_json(other / QUEUED, read_json(other / QUEUED) | {"place": float(number)})


def drop(folder: Path) -> None:
    """Take a run off the queue; its folder stays."""
    with edited(folder.parents[1]):
        if not (folder / QUEUED).exists():
            raise InputError("queue.absent", run=folder.name)
        (folder / QUEUED).unlink()


def wake(workspace: Path) -> None:
    """Let the queue work, detached, if there is anything to do; one that works already does it."""
    if not _due(workspace):
        return
    state = _state(workspace)
    with (state / "queue.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "core.queue", str(workspace)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=workspace,
            env={key: value for key, value in runs.environment().items() if key != consent.FLAG},
        )
    if runs.living(state / WORKER) is None:  # it is at work before it can say so itself
        with suppress(OSError):
            write_json(state / WORKER, signature(child.pid))


def asleep(workspace: Path) -> bool:
    """Say whether runs wait that nobody will start: the process that works was killed."""
    waits = bool(runs.waiting(workspace)) and not rules(workspace).paused
    return waits and runs.living(workspace / STATE / WORKER) is None


def work(workspace: Path) -> None:
    """Start runs as devices become free until nothing is left to do; leave at once if somebody else does."""
    while _due(workspace):
        with (_state(workspace) / "queue.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            write_json(workspace / STATE / WORKER, signature(os.getpid()))
            while _due(workspace):
                advance(workspace)
                time.sleep(SECONDS)
        # who added a run while the lock was still held saw it and left: so look once more without it


def advance(workspace: Path) -> None:
    """Take note of what has ended, then start the first run in the queue that has room, one at a look."""
    for folder in _taken(workspace):
        if runs.supervisor(folder) is None:
            failed = runs.look(folder).status in FAILED
            if failed and rules(workspace).on_error == "stop" and runs.waiting(workspace):
                pause(workspace, because=folder.name)
            (folder / TAKEN).unlink(missing_ok=True)
    busy, closed = slots.taken(workspace), set[str]()
    for folder in runs.waiting(workspace):
        try:
            wish = slots.wanted(folder)
            found = slots.free(wish, busy, rules(workspace).at_once, closed)
            if found and _start(folder, found):
                return
            closed.update(wish.slots)  # else small runs could overtake a large one for ever
        except (InputError, OSError) as error:
            if not (isinstance(error, InputError) and error.code == "run.active"):
                return _refuse(folder, error)
            # else somebody has just started it, and its supervisor takes it off


def _start(folder: Path, found: tuple[str, ...]) -> bool:
    """Launch a run on its slots and wait until it is off the queue; return whether it was still to be started."""
    with edited(folder.parents[1]):
        mark = read_json(folder / QUEUED)
        if not mark or rules(folder.parents[1]).paused:
            return False
        if read_json(folder / runs.EXIT).get("cause") == "done":  # it was resumed by hand while it was being added
            (folder / QUEUED).unlink()
            return False
        more = {"CUDA_VISIBLE_DEVICES": ",".join(found)} if set(found) <= set(slots.gpus()) else {}
        if mark.get("remote_code"):
            more[consent.FLAG] = "1"  # whoever added it was started with --remote-code
        runs.launch(folder, more)
        until = time.monotonic() + START_SECONDS
        while (folder / QUEUED).exists() and runs.supervisor(folder) and time.monotonic() < until:
            time.sleep(0.02)
        take(folder)  # a supervisor that did not come up would not come up the next time
        return True


def _refuse(folder: Path, error: InputError | OSError) -> None:
    """Take a run off the queue that can't be launched, and let its folder say why, as far as the disk has room."""
    if isinstance(error, InputError):
        told = error.problems
    elif error.errno in DISK_FULL:
        told = (Problem("disk.write", "", {"path": str(folder)}),)
    else:
        told = (Problem("engine.failed", "", {"what": str(error)}),)
    take(folder)
    with suppress(OSError):
        writer = events.Writer(folder)
        for problem in told:
            writer.write("error", code=problem.code, place=problem.place, params=problem.params)
        writer.close()
        write_json(folder / runs.EXIT, {"status": 2, "signal": None, "cause": "failed", "ended": time.time()})


def _rule(workspace: Path, **changes: Any) -> Rules:
    with edited(workspace):
        try:
            changed = Rules.model_validate(rules(workspace).model_dump() | changes)
        except ValidationError:
            raise InputError("queue.rule", most=MOST) from None
        write_json(workspace / STATE / "queue.json", changed.model_dump())
    return changed


def _due(workspace: Path) -> bool:
    """Say whether there is anything to start, or to take note of."""
    if any(True for _ in _taken(workspace)):
        return True
    return bool(runs.waiting(workspace)) and not rules(workspace).paused


def _taken(workspace: Path) -> Iterator[Path]:
    """Yield the folders of the runs that the queue started and whose end it has not seen yet."""
    return (mark.parent for mark in (workspace / "runs").glob(f"*/{TAKEN}"))


def _state(workspace: Path) -> Path:
    state = workspace / STATE
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        raise InputError("path.not_writable", path=str(state)) from None
    return state


@contextmanager
def edited(workspace: Path) -> Iterator[None]:
    """Let nobody else change the queue meanwhile; the kernel lets go of the lock of whoever dies."""
    with (_state(workspace) / "queue.edit").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    work(Path(sys.argv[1]).resolve())
