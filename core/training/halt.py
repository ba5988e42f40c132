"""A step that takes long is broken off when the run is told to stop; it is done anew when the run goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from core.errors import Stopped
from core.training.watch import Watch

SHARE = 0.5
"""Of the grace period: so long a step that has begun to learn is waited for, since what was before it is gone."""


class Halt(TrainerCallback):
    """Ends a run within a step, with a checkpoint of the last whole one. All processes come to each look at once."""

    def __init__(self, watch: Watch, grace: float) -> None:
        """grace: seconds between being told to stop and being killed."""
        self.watch, self.patience = watch, SHARE * grace
        self.heard = 0.0
        """When a look first found that this process was told to stop."""
        self.chances: list[torch.Tensor] = []
        """Where the random numbers stood after the last whole step; empty where there is nothing to save of it."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.chances = [torch.get_rng_state()]
        if torch.cuda.is_available():
            self.chances.append(torch.cuda.get_rng_state())

    def on_save(self, *_: Any, **__: Any) -> None:
        self.chances = []

    def look(self, patience: float = 0.0) -> None:
        """Raise Stopped where one of the processes was told to stop, so many seconds ago."""
        context, now = self.watch.context, time.monotonic()
        if context.stop.is_set():
            self.heard = self.heard or now
        if context.team.any(bool(self.heard) and now - self.heard >= patience):
            raise Stopped("run.stopped")

    @contextmanager
    def going_back(self, trainer: Any) -> Iterator[None]:
        """Where the run is stopped within this, before anything is learned: save what was before it, if it is sound."""
        try:
            yield
        except Stopped:
            if self.chances and not self.watch.broken:
                torch.set_rng_state(self.chances[0])
                if self.chances[1:]:
                    torch.cuda.set_rng_state(self.chances[1])
                trainer._save_checkpoint(trainer.model, trial=None)
                trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
            raise
