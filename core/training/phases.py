"""The phases of a run as events."""

from __future__ import annotations

import time

from core.data.batch import Lessons
from core.errors import Stopped
from core.workspace import Context


class Phases:
    """Tells what a run is doing."""

    def __init__(self, context: Context) -> None:
        self.context, self.name, self.told = context, "", 0.0

    def begin(self, name: str, *, step: int = 0, total: int = 0) -> None:
        self.name, self.told = name, time.monotonic()
        self.context.events.write("phase", phase=name, params={}, step=step, total=total)

    def advance(self, done: int) -> None:
        """Tell once a second how far the phase is; raise Stopped when the run is asked to stop."""
        if self.context.stop.is_set():
            raise Stopped("run.stopped")
        if time.monotonic() - self.told >= 1:
            self.told = time.monotonic()
            self.context.events.write("phase", phase=self.name, params={}, step=done)

    def warn_of(self, lessons: Lessons, cutoff: int) -> None:
        """Warn of rows that were cut or dropped."""
        rows = len(lessons.train) + len(lessons.eval) + lessons.dropped
        for code, count in (("data.cut", lessons.cut), ("data.dropped", lessons.dropped)):
            if count:
                params = {"count": count, "rows": rows, "cutoff": cutoff}
                self.context.events.write("warning", code=code, place="data.cutoff", params=params)
