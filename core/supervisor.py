"""`python -m core.supervisor RUN_DIR GRACE`: start the worker of a run, keep its log, and say how it ended.

It is detached from whoever launched it and keeps no promise in memory: `heartbeat` says it lives, `exit.json` how the
worker ended. It never leaves a process of its run behind. Nothing heavy is imported here.
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
from pathlib import Path
from typing import IO, Any

import psutil

LOG_BYTES = 10 << 20
HEARTBEAT_SECONDS = 5.0
CAUSES = {0: "done", 20: "stopped", 12: "out_of_memory", 13: "nan"}
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY")
PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """One worker and what is known of it."""

    def __init__(self, folder: Path, grace: float) -> None:
        self.folder, self.grace = folder, grace
        self.deadline: float | None = None
        """Monotonic time after which a stopping worker is killed; None before it was told to stop."""
        self.began = time.monotonic()
        self.oom_kills = _oom_kills()
        self.stop_requests = 0
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "core.worker", str(folder), str(grace)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self) -> int:
        """Wait for the worker's end; return its exit status, negative for a signal."""
        assert self.worker.stdout
        pump = threading.Thread(target=keep_log, args=(self.worker.stdout, self.folder / "console.log"), daemon=True)
        pump.start()
        beat, next_beat = 0, 0.0
        while (status := self._wait(0.2)) is None:
            now = time.monotonic()
            if now >= next_beat:
                beat, next_beat = beat + 1, now + HEARTBEAT_SECONDS
                self._beat(beat)
            if self.stop_requests and self.deadline is None:
                self.deadline = now + self.grace
                self.worker.send_signal(signal.SIGTERM)
            if self.stop_requests > 1 or (self.deadline is not None and now > self.deadline):
                self.kill()
        self.kill()
        pump.join(timeout=5)
        return status

    def stop(self, *_: Any) -> None:
        """Note a request to stop: the first lets the worker save its work, a second ends it at once."""
        self.stop_requests += 1

    def kill(self) -> None:
        """Kill the worker's process group and every other descendant, adopted ones included."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.worker.pid, signal.SIGKILL)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()

    def record(self, status: int) -> dict[str, Any]:
        """Return the exit record: how the worker ended, and why as far as it can be known."""
        signal_ = -status if status < 0 else None
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
        return how | {"seconds": seconds, "peak_bytes": peak, "ended": time.time()}

    def _wait(self, seconds: float) -> int | None:
        try:
            return self.worker.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _beat(self, count: int) -> None:
        """Leave a sign of life; end a run whose folder is gone, for it has nowhere left to write."""
        try:
            (self.folder / "heartbeat").write_text(str(count))
        except FileNotFoundError:
            self.kill()
        except OSError:
            pass  # a full disk must not end a run that still computes


def keep_log(source: IO[bytes], path: Path) -> None:
    """Copy the worker's output to the log: secrets blotted out, at most two files of LOG_BYTES, never blocking it."""
    secrets = [v.encode() for k, v in os.environ.items() if SECRET.search(k) and len(v) >= 8]
    log, size = path.open("ab"), path.stat().st_size
    for line in iter(lambda: source.readline(1 << 16), b""):
        for secret in secrets:
            line = line.replace(secret, b"***")
        try:
            if size + len(line) > LOG_BYTES:
                log.close()
                path.replace(path.with_name(path.name + ".1"))
                log, size = path.open("ab"), 0
            size += log.write(line)
            log.flush()
        except OSError:
            continue  # a full disk or a lost folder: the worker must not be blocked by its log
    log.close()


def _oom_kills() -> int:
    """Return how often the kernel killed for memory in our cgroup so far."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
        text = Path("/sys/fs/cgroup", own, "memory.events").read_text()
    except OSError:
        return 0
    return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))


def main(folder: Path, grace: float) -> int:
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 1  # another supervisor has this run
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    supervisor = Supervisor(folder, grace)
    record = supervisor.record(supervisor.run())
    aside = folder / "exit.json.tmp"
    aside.write_text(json.dumps(record), encoding="utf-8")
    aside.replace(folder / "exit.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), float(sys.argv[2])))
