"""`python -m core.cluster RUN_DIR GRACE PLAN`: let a Ray cluster do a run, in the place of its worker.

The supervisor starts it as it starts a worker. It submits the run as a job of Ray, copies what the job prints, hands a
stop on, and ends as the run ends. The folder of the run lies where the cluster sees it, too: events and checkpoints are
written there as anywhere else. PLAN, as JSON, says which processes the cluster starts.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from core import config
from core.crew import LOST
from core.errors import InputError, Stopped, TuneboardError
from core.events import FILE, RunState, Writer, catch_up
from core.models.packages import require
from core.sections import Hardware
from core.supervisor import SECRET

PLACE = "hardware.cluster"
POLL_SECONDS = 1.0
LAST_WORDS = 10.0
"""Seconds that what a job has printed is waited for after its end."""
HANDED = ("PYTHON", "HF_", "TORCH_", "TOKENIZERS_", "OMP_", "TUNEBOARD_")
"""Beginnings of the variables that the job gets, but for secrets: whoever sees the cluster sees them."""


def main(folder: Path, grace: float, plan: str) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    begun = time.monotonic()
    job = config.load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
    try:
        message, offset = follow(job.hardware, folder, grace, plan, stop)
        if end := catch_up(folder, RunState(), offset)[0].end:
            return end["status"]
        if stop.is_set():
            raise Stopped("run.stopped")
        raise TuneboardError("cluster.failed", PLACE, what=message)
    except TuneboardError as error:
        return tell(folder, error, begun)


def follow(hardware: Hardware, folder: Path, grace: float, plan: str, stop: threading.Event) -> tuple[str, int]:
    """Submit the run and wait for its end; return (what Ray says of that, where in the events the run began).

    Raises InputError at hardware.cluster.
    """
    require("ray", PLACE)
    from ray.job_submission import JobSubmissionClient

    command = [sys.executable, "-m", "core.crew", str(folder), str(grace), plan]
    handed = {name: value for name, value in os.environ.items() if name.startswith(HANDED) and not SECRET.search(name)}
    waits = {"RAY_JOB_STOP_WAIT_TIME_S": str(int(grace + LOST))}  # it kills after 3 seconds otherwise
    try:
        client = JobSubmissionClient(hardware.cluster)
        _end_others(client, folder)
        offset = _size(folder / FILE)
        name = client.submit_job(
            entrypoint=shlex.join(command),
            entrypoint_num_gpus=hardware.cluster_gpus or None,
            runtime_env={"env_vars": handed | waits},
            metadata={"run": str(folder)},
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError("cluster.unreachable", PLACE, address=hardware.cluster, what=_line(error)) from None
    print(f"job {name} of {hardware.cluster}", flush=True)
    copying = threading.Thread(target=_copy, args=(client, name), daemon=True)
    copying.start()
    end = _wait(client, name, stop)
    copying.join(LAST_WORDS)  # what was printed last is on its way
    return end, offset


def _end_others(client: Any, folder: Path) -> None:
    """Let a job end that did this run before, and whose follower was killed: two would write into one folder."""
    for job in client.list_jobs():
        if (job.metadata or {}).get("run") == str(folder) and not job.status.is_terminal():
            client.stop_job(job.submission_id)
            while not client.get_job_info(job.submission_id).status.is_terminal():
                time.sleep(POLL_SECONDS)


def tell(folder: Path, error: TuneboardError, begun: float) -> int:
    """Write how a job ended that could not say so itself; return its exit status."""
    events, stopped = Writer(folder), isinstance(error, Stopped)
    for problem in () if stopped else error.problems:
        events.write("error", code=problem.code, place=problem.place, params=problem.params)
    seconds = round(time.monotonic() - begun, 3)
    events.write("end", cause="stopped" if stopped else "failed", status=error.exit_code, seconds=seconds, metrics={})
    return error.exit_code


def _wait(client: Any, name: str, stop: threading.Event) -> str:
    """Wait for the end of a job; a cluster that does not answer for a while is asked again."""
    stopping = False
    while True:
        try:
            info = client.get_job_info(name)
            if info.status.is_terminal():
                return str(info.message or info.status)
            if stop.is_set() and not stopping:
                stopping = client.stop_job(name)
        except (OSError, RuntimeError) as error:
            print(f"{_line(error)}; asking again", flush=True)
        time.sleep(POLL_SECONDS)


def _copy(client: Any, name: str) -> None:
    """Print what a job prints."""

    async def copy() -> None:
        async for text in client.tail_job_logs(name):
            print(text, end="", flush=True)

    asyncio.run(copy())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), float(sys.argv[2]), sys.argv[3]))
