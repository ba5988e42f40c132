"""The run store: create, list, launch, watch, stop, resume, delete. A run is a folder; the folder is the truth.

Nothing is kept in memory: the state of a run is the fold of its events and whether its supervisor is alive.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import regex

from core import config, events
from core.errors import InputError
from core.events import RunState
from core.files import DISK_FULL, has_checkpoint, hold, read_json
from core.models import consent
from core.models.room import chosen, devices
from core.supervisor import LOCK, PROCESS, QUEUED, deferring, sign_in
from core.workspace import BUNDLED

EXIT, STOP = "exit.json", "stop"
LONGEST = 240  # bytes of a name: file systems take 255, and a number may come after it
ACTIVE = frozenset({"starting", "running", "stopping"})
RESUMABLE = frozenset({"stopped", "failed", "killed", "lost", "out_of_memory", "nan"})


@dataclass(frozen=True)
class View:
    """What there is to see of a run at one moment."""

    folder: Path
    status: str
    """new, queued, starting, running, stopping, done, stopped, failed, out_of_memory, nan, killed or lost."""
    state: RunState
    offset: int
    exit: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    @property
    def resumable(self) -> bool:
        """Whether it has ended early, with a checkpoint to go on from."""
        return self.status in RESUMABLE and has_checkpoint(self.folder)

    @property
    def position(self) -> int:
        """Its place in the queue, from 1; 0 for a run that does not wait."""
        order = list(waiting(self.folder.parents[1])) if self.status == "queued" else []
        return order.index(self.folder) + 1 if self.folder in order else 0


def create(job: config.Job, workspace: Path) -> Path:
    """Make the folder of a new run with its settings, frozen; return it."""
    root = workspace / "runs"
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = _fresh(root, slug(job.name, job.kind))
        with _telling_full_disk(root):
            _freeze(config.dump(job), folder)
    except OSError as error:
        raise InputError("path.not_writable", path=str(error.filename or root)) from None
    return folder


def _freeze(settings: str, folder: Path) -> None:
    """Write the settings of a run; leave no folder where they can't be written."""
    try:
        (folder / "run.yaml").write_text(settings, encoding="utf-8")
        (folder / "run.yaml").chmod(0o400)
    except OSError:
        shutil.rmtree(folder)
        raise


@contextlib.contextmanager
def _telling_full_disk(folder: Path) -> Iterator[None]:
    """Turn what the system says when nothing more fits below a folder into an InputError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise InputError("disk.write", path=str(folder)) from None
        raise


def slug(name: str, empty: str) -> str:
    """Return a name as that of a folder; `empty` where nothing is left of it. Twice is once."""
    kept = regex.sub(r"[^\p{L}\p{M}\p{N}._-]+", "-", unicodedata.normalize("NFC", name))
    return kept.encode()[:LONGEST].decode(errors="ignore").strip("-.") or empty


def _fresh(root: Path, name: str) -> Path:
    """Make a folder that did not exist: name, name-2, name-3 ...; mkdir decides between two who ask at once."""
    for number in itertools.count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def find(name: str, workspace: Path) -> Path:
    """Return the folder of a run by its name; raise InputError when there is none."""
    folder = workspace / "runs" / name
    if slug(name, "") != name or not (folder / "run.yaml").is_file():
        raise InputError("run.unknown", run=name[:80], root=str(workspace / "runs"))
    return folder


def listed(workspace: Path) -> list[Path]:
    """Return the folders of all runs, newest first."""
    found = [path.parent for path in (workspace / "runs").glob("*/run.yaml")]
    return sorted(found, key=lambda folder: (folder / "run.yaml").stat().st_mtime, reverse=True)


def waiting(workspace: Path) -> dict[Path, float]:
    """Return folder -> place of the runs that wait in the queue, in its order (core.queue)."""
    found: list[tuple[float, Path]] = []
    for mark in (workspace / "runs").glob(f"*/{QUEUED}"):
        place = read_json(mark).get("place")
        if isinstance(place, int | float):  # else it was taken off just now
            found.append((place, mark.parent))
    return {folder: place for place, folder in sorted(found)}


def settings(folder: Path) -> config.Job:
    """Return the job that a run was created with."""
    return config.load((folder / "run.yaml").read_text(encoding="utf-8"), f"{folder.name}/run.yaml")


def look(folder: Path, before: View | None = None) -> View:
    """Return the view of a run now; from an earlier view only what is new is read."""
    if before is None or before.folder != folder or before.offset > _size(folder / events.FILE):
        state, offset = events.fold(folder)
    else:
        state, offset = events.catch_up(folder, before.state, before.offset)
    exit_record = read_json(folder / EXIT)
    return View(folder, _status(folder, state, exit_record), state, offset, exit_record)


def _status(folder: Path, state: RunState, exit_record: dict[str, Any]) -> str:
    if (folder / QUEUED).exists() and supervisor(folder) is None:
        return "queued"
    if exit_record:
        return exit_record["cause"]
    process = read_json(folder / PROCESS)
    if not process:
        return "new"
    begun = state.started is not None and state.started >= process["launched"]
    asked = (folder / STOP).exists()
    if supervisor(folder) is not None:
        return "stopping" if asked else "running" if begun else "starting"
    if begun and state.end:
        return state.end["cause"]
    return "stopped" if asked and not begun else "lost"


def supervisor(folder: Path) -> psutil.Process | None:
    """Return the living supervisor of a run."""
    return living(folder / PROCESS)


def living(path: Path) -> psutil.Process | None:
    """Return the living process of a record; one that merely reuses its number does not count."""
    record = read_json(path)
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["created"]) < 0.05
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (KeyError, psutil.Error):
        return None


def launch(folder: Path, more: dict[str, str] | None = None) -> None:
    """Start the supervisor of a run, detached: a session of its own, no pipe, no stdin. It outlives its starter.

    more: what its environment has beside ours. The lock of the run is taken here and handed over: of two who launch
    at once one gets a run that is active. Raises InputError, and nothing is started, where the disk is full.
    """
    job = settings(folder)
    env = environment() | chosen(job.hardware) | (more or {})
    with _telling_full_disk(folder), (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("run.active", run=folder.name) from None
        hold(folder)
        for leftover in (EXIT, STOP):
            (folder / leftover).unlink(missing_ok=True)
        child = _start(folder, job, env, handed=(lock.fileno(),))
        try:
            sign_in(folder, child.pid, env)
        except OSError:
            child.terminate()  # nobody would see it, so nobody could stop it
            raise


def join(folder: Path, node: int) -> None:
    """Start the part of a run that machine `node` does, counted from 0; the first one launches the run itself."""
    job = settings(folder)
    machines = job.launcher.machines if isinstance(job, config.Run) else 1
    if not 0 < node < machines:
        raise InputError("run.node", run=folder.name, node=node, last=machines - 1)
    _start(folder, job, environment() | chosen(job.hardware), node)


def _start(
    folder: Path, job: config.Job, env: dict[str, str], node: int = 0, handed: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start the supervisor of a run on this machine, with the lock that is handed to it; return it."""
    hardware = job.hardware
    count = hardware.cluster_gpus if hardware.cluster else len(devices(hardware))
    crew = job.launcher.crew(count) if isinstance(job, config.Run) else {}
    if hardware.cluster:
        crew = {"module": "core.cluster", "more": [json.dumps(crew)]}
    command = [str(folder), str(hardware.grace), json.dumps(crew | {"node": node}), *map(str, handed)]
    with (folder / "supervisor.log").open("ab") as log, deferring():
        return subprocess.Popen(
            [sys.executable, "-m", "core.supervisor", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=handed,
            cwd=folder.parents[1],
            env=env,
        )


def environment() -> dict[str, str]:
    """Return the environment of the engine: ours without the board's secrets, UTF-8, no telemetry, no pickles."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("TUNEBOARD_", "GRADIO_"))}
    path = os.pathsep.join(filter(None, [str(BUNDLED), ours.get("PYTHONPATH", "")]))
    fixed = {
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",  # a workspace is no place to import from: it may hold a core.py of somebody else
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",  # the libraries' talk among themselves, no news for a log
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        **({consent.FLAG: "1"} if consent.allowed() else {}),
    }
    return ours | fixed


def stop(folder: Path) -> None:
    """Ask a run to save its work and end; ask again to end it at once. Nothing happens to a run that has ended."""
    process = supervisor(folder)
    if process is not None:
        with contextlib.suppress(OSError):  # a full disk must not keep a run from being stopped
            (folder / STOP).touch()
        process.send_signal(signal.SIGTERM)


def resume(folder: Path) -> None:
    """Go on with a training run from its newest good checkpoint; raise InputError where that makes no sense."""
    view = look(folder)
    if view.active:
        raise InputError("run.active", run=folder.name)
    if not isinstance(settings(folder), config.Run):
        raise InputError("run.not_training", run=folder.name)
    if view.status == "done":
        raise InputError("run.complete", run=folder.name)
    launch(folder)


def delete(folder: Path) -> None:
    """Remove a run and all it made; raise InputError while it is active."""
    if supervisor(folder) is not None:
        raise InputError("run.active", run=folder.name)
    shutil.rmtree(folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
