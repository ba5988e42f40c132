"""`python -m tests.exact.forks`: worker processes that die when they are told to, without loading the libraries anew.

Reads one JSON object a line: the folder of a run, and where it meets its end: `step`, the event of a step after which
it sends itself `signal`; `touch`, the number of times that it touches its checkpoints (opens, renames, removes) before
it kills itself. Answers each with a JSON object: the exit status, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARIES = ("bitsandbytes", "peft", "core.training.course", "core.training.exploring", "core.training.results")
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir")
TOUCHED = "touched"
"""File in the folder of a run with the number of times that it touched its checkpoints."""


def count(folder: Path, last: int | None) -> None:
    """Count how often the checkpoints are touched; die just before the time that is the last."""
    place, seen = str(folder / "checkpoints"), 0
    note = os.open(folder / TOUCHED, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def touched(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in TOUCHES and place in str(given[0]):
            seen += 1
            os.pwrite(note, str(seen).encode(), 0)
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touched)


def work(asked: dict[str, Any]) -> int:
    """Do what core.worker does for a run."""
    from core import worker
    from core.events import Writer

    folder = Path(asked["folder"])
    log = os.open(folder / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)

    class Ending(Writer):
        def write(self, type_: str, **fields: Any) -> None:
            super().write(type_, **fields)
            if type_ == "step" and fields["step"] == asked.get("step"):
                os.kill(os.getpid(), asked["signal"])

    worker.Writer = Ending  # type: ignore[misc]
    count(folder, asked.get("touch"))
    return worker.main(folder)


def main() -> None:
    for name in LIBRARIES:
        import_module(name)
    for line in sys.stdin:
        if not (child := os.fork()):
            os.setpgid(0, 0)
            os._exit(work(json.loads(line)))
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)


if __name__ == "__main__":
    main()
