"""`python -m core.supervisor RUN_DIR GRACE [PLAN]`: start the processes of a run, keep their log, say how they ended.

It is detached from whoever launched it and keeps no promise in memory: `heartbeat` says it lives, `exit.json` how the
processes ended. It never leaves one of them behind. PLAN, as JSON, says which to start; without it, one worker. Nothing
heavy is imported here.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from core.crew import HEARTBEAT, Crew, Plan
from core.files import release, write_json

PROCESS = "process.json"
LOCK = ".lock"
QUEUED, TAKEN = "queued.json", "taken.json"
"""The mark of a run that waits in the queue, and what becomes of it when the run is started (core.queue)."""

LOG_BYTES = 10 << 20
HEARTBEAT_SECONDS = 5.0
RELIEF_SECONDS = 60
CAUSES = {0: "done", 20: "stopped", 12: "out_of_memory", 13: "nan"}
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY")
PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """The processes of a run and what is known of them."""

    def __init__(self, folder: Path, grace: float, plan: Plan) -> None:
        self.folder, self.grace = folder, grace
        self.deadline: float | None = None
        """Monotonic time after which a stopping run is killed; None before it was told to stop."""
        self.began = time.monotonic()
        self.oom_kills = _oom_kills()
        self.stop_requests = 0
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # deferred up to here
        self.crew = Crew(folder, [str(folder), str(grace)], plan)
        self.mark = mark(plan)

    def run(self) -> int:
        """Wait for the end of the run; return its exit status, negative for a signal."""
        pump = threading.Thread(
            target=keep_log, args=(self.crew.output, self.folder / f"console{self.mark}.log"), daemon=True
        )
        pump.start()
        beat, next_beat = 0, 0.0
        while (status := self.crew.wait(0.2)) is None:
            now = time.monotonic()
            if now >= next_beat:
                beat, next_beat = beat + 1, now + HEARTBEAT_SECONDS
                self._beat(beat)
            if self.stop_requests and self.deadline is None:
                self.deadline = now + self.grace
                self.crew.signal(signal.SIGTERM)
            if self.stop_requests > 1 or (self.deadline is not None and now > self.deadline):
                self.kill()
        self.kill()
        pump.join(timeout=5)
        return status

    def stop(self, *_: Any) -> None:
        """Note a request to stop: the first lets the worker save its work, a second ends it at once."""
        self.stop_requests += 1

    def kill(self) -> None:
        """Kill the workers' process groups and every other descendant, adopted ones included."""
        self.crew.kill()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()

    def record(self, status: int) -> dict[str, Any]:
        """Return the exit record: how the run ended, and why as far as it can be known; who was the first to fail."""
        number, first = (self.crew.first if status else None) or (0, 0)
        signal_ = -min(status, first, 0) or None
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        if signal_ is None:
            cause = CAUSES.get(status, "failed")
        elif signal_ == signal.SIGTERM and self.stop_requests:
            cause = "stopped"  # it had not begun yet
        elif signal_ == signal.SIGKILL and self.deadline is None and _oom_kills() > self.oom_kills:
            cause = "out_of_memory"
        else:
            cause = "killed"
        seconds = round(time.monotonic() - self.began, 3)
        how = {"status": status, "signal": signal_, "cause": cause}
        if first and self.crew.plan.size > 1:
            how |= {"rank": self.crew.plan.rank(number), "processes": self.crew.plan.size}
        return how | {"seconds": seconds, "peak_bytes": peak, "ended": time.time()}

    def _beat(self, count: int) -> None:
        """Leave a sign of life; end a run whose folder is gone, for it has nowhere left to write."""
        try:
            (self.folder / f"{HEARTBEAT}{self.mark}").write_text(str(count))
        except FileNotFoundError:
            self.kill()
        except OSError:
            pass  # a full disk must not end a run that still computes


def keep_log(source: IO[bytes], path: Path) -> None:
    """Copy the output of the run to the log: secrets blotted out, at most two files of LOG_BYTES, never blocking it."""
    secrets = [v.encode() for k, v in os.environ.items() if SECRET.search(k) and len(v) >= 8]
    log, size = None, 0
    for line in iter(lambda: source.readline(1 << 16), b""):
        for secret in secrets:
            line = line.replace(secret, b"***")
        try:
            if log and size + len(line) > LOG_BYTES:
                path.replace(path.with_name(path.name + ".1"))
                log.close()
                log = None
            if not log:
                log = path.open("ab", buffering=0)  # nothing that is left over would fail again when it is closed
                size = path.stat().st_size
            size += log.write(line)
        except OSError:
            continue  # a full disk or a lost folder: the worker must not be blocked by its log
    if log:
        log.close()


def _oom_kills() -> int:
    """Return how often the kernel killed for memory in our cgroup so far."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
        text = Path("/sys/fs/cgroup", own, "memory.events").read_text()
    except OSError:
        return 0
    return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))


def signature(pid: int) -> dict[str, Any]:
    """Return what tells a process from a later one with its number."""
    return {"pid": pid, "created": psutil.Process(pid).create_time()}


def sign_in(folder: Path, pid: int, environment: Mapping[str, str]) -> None:
    """Write down who the supervisor of a run is, and which GPUs it was given, if it was."""
    signed = signature(pid)
    more = {"launched": round(signed["created"], 3), "gpus": environment.get("CUDA_VISIBLE_DEVICES")}
    write_json(folder / PROCESS, signed | more)


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """Let a supervisor that is started within hear a request to stop once it can, and not die of it before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take(folder: Path) -> None:
    """Take a run off the queue, in one step. Its supervisor does it before it starts the worker: if it or its starter
    dies before, the run still waits; after it, nobody starts the run twice."""
    with contextlib.suppress(FileNotFoundError):
        (folder / QUEUED).replace(folder / TAKEN)


def mark(plan: Plan) -> str:
    """Return what the files of this machine have in their names: nothing on the first."""
    return f"-{plan.node}" if plan.node else ""


def main(folder: Path, grace: float, told: str = "{}", handed: str = "") -> int:
    """Supervise a run; told: the plan as JSON; handed: the open lock of the run, which its launcher took."""
    plan = Plan(**json.loads(told))
    lock = os.fdopen(int(handed), "w") if handed else (folder / f"{LOCK}{mark(plan)}").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 1  # another supervisor has this run
    if not plan.node:
        with contextlib.suppress(OSError):
            sign_in(folder, os.getpid(), os.environ)  # the launcher does, too, unless it was killed just then
        take(folder)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    supervisor = Supervisor(folder, grace, plan)
    record = supervisor.record(supervisor.run())
    release(folder)  # room for what is written now, on a full disk, too
    if record["cause"] == "out_of_memory" and record["signal"] and not plan.node:  # it could not say what would help
        relief = [sys.executable, "-m", "core.relief", str(folder), str(record["peak_bytes"])]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(relief, stdin=subprocess.DEVNULL, timeout=RELIEF_SECONDS, check=False)
    write_json(folder / f"exit{mark(plan)}.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), float(sys.argv[2]), *sys.argv[3:]))
