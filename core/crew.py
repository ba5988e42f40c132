"""The processes of one run on one machine, started and watched by its supervisor. Standard library only.

Each is told its number by the variables that torchrun sets. torchrun itself is not asked: it kills processes 30 seconds
after a stop, whatever they have to save, and keeps their exit statuses to itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core.files import release, write_json

MEETING = ".meeting"
"""Folder in that of the run where its processes leave word for each other."""
FIRST = "first.json"
"""What the supervisor knows of the process that ended first without having done its work."""
HEARTBEAT = "heartbeat"
"""Sign of life of the supervisor, in the folder of the run."""
LOST = 120.0
"""Seconds without one after which a cluster ends a run: nobody would see how it ends."""
PATIENCE = 20.0
"""Seconds that the others have to end after the first."""


@dataclass(frozen=True)
class Plan:
    """What is to be started."""

    processes: int = 1
    """On this machine."""
    nodes: int = 1
    node: int = 0
    """The number of this machine."""
    endpoint: str = ""
    """host:port at which the processes of several machines meet."""
    divides: bool = False
    """Whether they divide the model, for which even one that is alone must meet."""
    module: str = "core.worker"
    more: tuple[str, ...] = ()
    """What the module is told beside the folder and the grace period."""

    @property
    def size(self) -> int:
        return self.processes * self.nodes

    @property
    def meets(self) -> bool:
        return self.size > 1 or self.divides

    def rank(self, local: int) -> int:
        """Return the number among all processes of one of this machine."""
        return self.node * self.processes + local

    def variables(self, local: int) -> dict[str, str]:
        """Return the environment of one process; nothing for one that meets none."""
        if not self.meets:
            return {}
        host, _, port = self.endpoint.partition(":")
        at = {"MASTER_ADDR": host, "MASTER_PORT": port} if self.nodes > 1 else {}
        own = {
            "RANK": self.rank(local),
            "LOCAL_RANK": local,
            "WORLD_SIZE": self.size,
            "LOCAL_WORLD_SIZE": self.processes,
        }
        return at | {name: str(value) for name, value in own.items()}


class Crew:
    """Processes that live and die together."""

    def __init__(self, folder: Path, arguments: Sequence[str], plan: Plan) -> None:
        self.meeting = folder / MEETING
        if plan.node == 0:
            shutil.rmtree(self.meeting, ignore_errors=True)
        if plan.meets:
            self.meeting.mkdir(exist_ok=True)
        self.plan = plan
        self.first: tuple[int, int] | None = None
        """(number, exit status) of the first that ended with another status than 0."""
        self.deadline = float("inf")
        """Monotonic time at which those that are left are killed."""
        read, write = os.pipe()
        self.workers = [
            subprocess.Popen(
                [sys.executable, "-m", plan.module, *arguments, *plan.more],
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                start_new_session=True,
                env=os.environ | plan.variables(local),
            )
            for local in range(plan.processes)
        ]
        os.close(write)
        self.output: IO[bytes] = os.fdopen(read, "rb")

    def wait(self, seconds: float) -> int | None:
        """Return the exit status of the whole once all have ended; None after so many seconds.

        It is that of the first process, or of the one that failed first where the first was killed.
        """
        if running := next((worker for worker in self.workers if worker.poll() is None), None):
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(seconds)
        self._look()
        if any(worker.returncode is None for worker in self.workers):
            if time.monotonic() > self.deadline:
                self.kill()
            return None
        status = self.workers[0].returncode
        return self.first[1] if self.first and status < 0 else status

    def signal(self, number: signal.Signals) -> None:
        for worker in self.workers:
            worker.send_signal(number)

    def kill(self) -> None:
        """Kill every process with its group."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)

    def _look(self) -> None:
        """Note who ended first; the others then have a moment to end, too."""
        ended = [(number, worker.returncode) for number, worker in enumerate(self.workers) if worker.poll() is not None]
        failed = [(number, status) for number, status in ended if status]
        if failed and self.first is None:
            self.first = failed[0]
            if self.plan.size > 1:
                word = {"rank": self.plan.rank(failed[0][0]), "status": failed[0][1]}
                release(self.meeting.parent)  # room for it on a full disk, too
                with contextlib.suppress(OSError):  # the others must end in any case
                    write_json(self.meeting / FIRST, word)
        if ended and self.deadline == float("inf"):
            self.deadline = time.monotonic() + PATIENCE


def main(folder: Path, grace: float, told: str) -> int:
    """`python -m core.crew RUN_DIR GRACE PLAN`: the processes of a run on a machine of a cluster (core.cluster).

    They end in order when they are told to, or when nobody at home shows signs of life any more.
    """
    crew = Crew(folder, [str(folder), str(grace)], Plan(**json.loads(told)))
    ending: list[float] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.append(time.monotonic()))
    threading.Thread(target=_print, args=(crew.output,), daemon=True).start()
    beat, alive, signalled = b"", time.monotonic(), False
    while (status := crew.wait(0.5)) is None:
        now = time.monotonic()
        with contextlib.suppress(OSError):
            if (found := (folder / HEARTBEAT).read_bytes()) != beat:
                beat, alive = found, now
        if now - alive > LOST:
            ending.append(now)
        if ending and not signalled:
            signalled = True
            crew.signal(signal.SIGTERM)
        if ending and now > ending[0] + grace:
            crew.kill()
    crew.kill()
    return status if status >= 0 else 128 - status


def _print(output: IO[bytes]) -> None:
    for line in output:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
