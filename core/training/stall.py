"""A watchdog: when no step is done for many times the usual time, it says so and writes where every thread waits."""

from __future__ import annotations

import faulthandler
import statistics
import sys
import threading
import time
from collections import deque
from typing import Any

from transformers import TrainerCallback

from core.workspace import Context

TIMES, LEAST = 10, 300.0
"""A step is late after so many times the usual time, and never before so many seconds."""
REMEMBERED = 32


class Watchdog(TrainerCallback):
    """Watches the signs of life of a run from a thread of its own. It ends nothing: a run may wait for a slow disk."""

    def __init__(self, context: Context, least: float = LEAST) -> None:
        self.context, self.least = context, least
        self.took: deque[float] = deque(maxlen=REMEMBERED)
        self.step, self.begun = 0, time.monotonic()
        self.alive = self.begun
        self.told = False
        self._end = threading.Event()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()

    @property
    def usual(self) -> float:
        """The median of the seconds that the last steps took; 0 before the first."""
        return statistics.median(self.took) if self.took else 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = self._beat()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.took.append(self._beat() - self.begun)
        self.step = state.global_step

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self._beat()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._beat()

    def on_save(self, *_: Any, **__: Any) -> None:
        self._beat()

    def _beat(self) -> float:
        self.alive, self.told = time.monotonic(), False
        return self.alive

    def _watch(self) -> None:
        while not self._end.wait(self.least / 60):
            waited = time.monotonic() - self.alive
            if waited > max(self.least, TIMES * self.usual) and not self.told:
                self.told = True
                params = {"seconds": round(waited), "usual": round(self.usual, 1), "step": self.step}
                self.context.events.write("warning", code="run.stalled", place="", params=params)
                print(f"no step for {waited:.0f} s after step {self.step}; every thread stands here:", file=sys.stderr)
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
