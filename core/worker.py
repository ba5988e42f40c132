"""`python -m core.worker RUN_DIR [GRACE]`: load the job of a run folder, do it, write exactly one end event.

The supervisor starts it; nobody else needs to. Its exit status is the category of errors.py. Of several processes that
do one job together the first alone writes events.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from core import config
from core.errors import DeviceError, InputError, NotFinite, OutOfMemory, Problem, Stopped, TuneboardError
from core.events import Silent, Writer
from core.files import DISK_FULL, release
from core.imports import quickly
from core.models.packages import shield
from core.relief import relieve
from core.team import Team
from core.workspace import Context

CAUSES = {Stopped: "stopped", OutOfMemory: "out_of_memory", NotFinite: "nan"}


def main(folder: Path, grace: float = 120.0) -> int:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    team, began, stop = Team.called(), time.monotonic(), threading.Event()
    events = Writer(folder) if team.rank == 0 else Silent(folder)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    threading.Thread(target=_follow_parent, args=(os.getppid(), stop, grace), daemon=True).start()
    metrics: dict[str, Any] = {}
    error: TuneboardError | None = None
    job: config.Job | None = None
    try:
        job = config.load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
        _use_threads(job.hardware.threads)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that no run here asked for
        events.write("started", job=job.kind, pid=os.getpid(), processes=team.size)
        events.write("phase", phase="load_libraries", params={})
        context = Context(folder, folder.parents[1], events, stop, team)
        for package, what in shield(context.workspace).items():
            events.write("warning", code="package.hidden", place="", params={"package": package, "what": what})
        metrics = _do(job, context)
    except TuneboardError as raised:
        error = raised
    except BaseException as raised:  # noqa: BLE001 - the one place that turns what nobody foresaw into a record
        traceback.print_exc()
        error = classify(raised)
        if team.size > 1 and type(error) is TuneboardError:
            error = team.blame(folder, error)
    release(folder)
    if isinstance(error, OutOfMemory) and isinstance(job, config.Run):
        error = relieve(error, job, folder.parents[1])
    if error is not None and team.size > 1:
        team.confess(folder, error)
    if error is not None and not isinstance(error, Stopped):
        for problem in error.problems:
            events.write("error", code=problem.code, place=problem.place, params=problem.params)
    cause = "done" if error is None else CAUSES.get(type(error), "failed")
    status = 0 if error is None else error.exit_code
    events.write("end", cause=cause, status=status, seconds=round(time.monotonic() - began, 3), metrics=metrics)
    return status


def _do(job: config.Job, context: Context) -> dict[str, Any]:
    """Do the job; the heavy libraries are imported here, by the one that needs them."""
    if isinstance(job, config.Run):
        context.team.join(context.folder, job.hardware, divides=any(job.launcher.divides))
        with quickly():
            from core.training import course  # noqa: F401 - all that a stage needs
        metrics = job.stage.train(job, context)
        context.team.leave()
        return metrics
    if isinstance(job, config.Evaluation):
        with quickly():
            from core.evaluation.run import evaluate
        return evaluate(job, context)
    if isinstance(job, config.Export):
        with quickly():
            from core.export.merge import export
        return export(job, context)
    with quickly():
        from core.serving.server import serve
    return serve(job, context)


def classify(raised: BaseException) -> TuneboardError:
    """Return the error of our family that an exception of a library means."""
    text = str(raised)
    if isinstance(raised, MemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return OutOfMemory("memory.host")
    if type(raised).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return OutOfMemory("memory.device")
    if (isinstance(raised, OSError) and raised.errno in DISK_FULL) or "unexpected pos" in text:
        return InputError("disk.write", path=str(getattr(raised, "filename", None) or "the run folder"))
    if type(raised).__name__ == "AcceleratorError" or "CUDA error" in text:
        return DeviceError("device.failed", what=text.splitlines()[0][:200])
    what = f"{type(raised).__name__}: {text}".splitlines()[0][:300]
    return TuneboardError("", problems=(Problem("engine.failed", "", {"what": what}),))


def _use_threads(threads: int) -> None:
    """Fix the number of threads before torch is imported."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _follow_parent(parent: int, stop: threading.Event, grace: float) -> None:
    """Stop in order when the supervisor is gone, by force after the grace period: nobody would see it run on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    stop.set()
    time.sleep(grace)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), *map(float, sys.argv[2:])))
