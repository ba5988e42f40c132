"""What the run folders say, kept for a moment for all viewers: reading each event once is enough for everybody.

A cache, no state: throw it away and nothing is lost.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core import runs
from core.runs import View

MOST = 64
"""Runs kept at most; the one that nobody looked at for longest goes first."""


class Watch:
    """The views of the runs that somebody looks at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, tuple[threading.Lock, list[View]]] = OrderedDict()

    @contextmanager
    def view(self, folder: Path) -> Iterator[View]:
        """Lend the view of a run as it is now; nobody folds events into it meanwhile."""
        with self._lock:
            lock, kept = self._kept.setdefault(folder, (threading.Lock(), []))
            self._kept.move_to_end(folder)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
        with lock:
            view = runs.look(folder, kept[0] if kept else None)
            kept[:] = [view]
            yield view
