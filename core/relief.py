"""`python -m core.relief RUN_DIR PEAK`: tell what would have helped a run that the system killed for want of memory.

The supervisor starts it, for it loads nothing heavy itself; a worker that still lives asks by itself.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from core.checkpoints import in_words
from core.config import Run, load
from core.errors import InputError, OutOfMemory
from core.events import Writer
from core.forecast import forecast, words


def relieve(error: OutOfMemory, run: Run, workspace: Path) -> OutOfMemory:
    """Return the error with the cheapest changes that make the run fit; as it is where none is known."""
    helps = changes(run, workspace)
    if not helps:
        return error
    if error.code == "memory.device":
        return OutOfMemory("memory.device_fixes", "training.batch_size", fixes=told(helps), changes=helps)
    return OutOfMemory("memory.host_fixes", "training.batch_size", fixes=told(helps), changes=helps)


def changes(run: Run, workspace: Path) -> list[dict[str, Any]]:
    """Return the cheapest changes, as {setting: value}, with which a run takes clearly less than it was planned to.

    It did not fit, whatever its plan said: so what is asked for is less than the plan, and than what is there.
    """
    try:
        found = forecast(run, workspace)
        if found is None:
            return []
        there = found.room
        held = psutil.Process().memory_info().rss  # ours, which a new run would have
        free = there.total if there.device == "cuda" else min(there.total, there.free + held)
        within = forecast(run, workspace, replace(there, free=min(free, found.plan.peak - 1)))
    except InputError:
        return []
    return [dict(fix.patch) for fix in within.fixes] if within else []


def told(helps: list[dict[str, Any]]) -> str:
    """Return changes as the command line takes them."""
    return "; ".join(" ".join(words(patch)) for patch in helps)


def main(folder: Path, peak: int) -> None:
    """Write the error event of a run that was killed."""
    run = load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
    if isinstance(run, Run) and (helps := changes(run, folder.parents[1])):
        params = {"peak": in_words(peak), "fixes": told(helps), "changes": helps}
        Writer(folder).write("error", code="memory.killed_fixes", place="training.batch_size", params=params)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
