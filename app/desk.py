"""Questions about data, answered by a process of their own: neither the board nor the command line reads rows."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.runs import environment
from core.workspace import BUNDLED

SECONDS = 900
"""After which a question is given up."""
QUIET = ["-W", "ignore"]


def ask(
    what: str, workspace: Path, data: dict[str, Any], *, advance: Callable[[int], None] = lambda done: None, **more: Any
) -> dict[str, Any]:
    """Return the answer to a question of core.data.desk. Raises InputError with what is wrong with the data.

    data: settings of the section `data`; its first training set is what is asked about. `advance` hears, from another
    thread, how many rows are done.
    """
    question = {"ask": what, "workspace": str(workspace), "data": data, **more}
    command = [sys.executable, *QUIET, "-m", "core.data.desk"]
    with subprocess.Popen(
        command, cwd=BUNDLED, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8",
    ) as child:  # fmt: skip
        said: list[str] = []
        listener = threading.Thread(target=_listen, args=(child.stderr, advance, said), daemon=True)
        listener.start()
        clock = threading.Timer(SECONDS, child.kill)
        clock.start()
        try:
            assert child.stdin and child.stdout
            child.stdin.write(json.dumps(question))
            child.stdin.close()
            answer = child.stdout.read()
        finally:
            clock.cancel()
            child.kill()
        listener.join(5)
    if not answer:
        raise InputError("engine.failed", what=(said or ["?"])[-1][:200])
    found = json.loads(answer)
    if problem := found.get("problem"):
        raise InputError(problem["code"], problem["place"], **problem["params"])
    return found["answer"]


def _listen(stream: Any, advance: Callable[[int], None], said: list[str]) -> None:
    """Hand on the numbers that the child prints; keep its last other words."""
    for line in stream:
        if line.strip().isdigit():
            advance(int(line))
        elif line.strip():
            said[:] = [*said[-20:], line.strip()]
