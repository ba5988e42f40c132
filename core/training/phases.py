"""The phases of a run as events."""

from __future__ import annotations

import time

from transformers import PreTrainedConfig

from core.data.batch import Lessons
from core.data.encode import Counts
from core.data.stream import Stream
from core.errors import InputError, Stopped
from core.models.rope import context
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

    def check_context(self, config: PreTrainedConfig, lessons: Lessons) -> None:
        """Warn of rows longer than the model was made for; raise InputError where it can't take them at all."""
        limit = context(config)
        if isinstance(lessons.train, Stream) or not (lessons.train.lengths_B > limit).any():
            return
        count = int((lessons.train.lengths_B > limit).sum())
        if "rope_parameters" not in config.get_text_config().to_dict():
            raise InputError("data.beyond_positions", "data.cutoff", count=count, context=limit)
        params = {"count": count, "context": limit}
        self.context.events.write("warning", code="data.beyond_context", place="model.rope", params=params)

    def warn_of(self, counts: Counts, cutoff: int) -> None:
        """Warn of rows that were passed over, cut or dropped or mostly repeat others, and of control tokens typed."""
        told = {
            "data.broken": (counts.broken, "data.train"),
            "data.cut": (counts.cut, "data.cutoff"),
            "data.dropped": (counts.dropped, "data.cutoff"),
            "data.unseen": (counts.unseen, "data.cutoff"),
            "data.escaped": (counts.escaped, "data.train"),
            "data.repeated": (counts.repeated if 2 * counts.repeated > counts.rows else 0, "data.train"),
        }
        for code, (count, place) in told.items():
            if count:
                params = {"count": count, "rows": counts.rows + counts.broken, "cutoff": cutoff}
                self.context.events.write("warning", code=code, place=place, params=params)
