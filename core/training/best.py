"""The evaluation with the lowest loss: its checkpoint is kept and saved, and the run ends when none is lower."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from core.checkpoints import Store, check
from core.watching import Watching
from core.workspace import Context


class Best(TrainerCallback, ExportableState):
    """Follows the loss on the first evaluation set.

    What it knows goes into every checkpoint, so that a resumed run decides as an unbroken one.
    """

    def __init__(self, watching: Watching, first: str, found: Path | None, ensure_room: Callable[[], None]) -> None:
        """first: name of the evaluation set that counts. found: the checkpoint that the run goes on from.

        ensure_room: raises InputError where no checkpoint fits any more.
        """
        self.watching, self.ensure_room = watching, ensure_room
        self.metric = f"eval_{first}_loss" if first else "eval_loss"
        self.loss: float | None = None
        """The lowest one, which the model had at `step`."""
        self.step = 0
        self.waited = 0
        """Evaluations in a row that were not lower by more than the threshold."""
        if found:
            known = recall(self, found)
            self.loss, self.step, self.waited = known["loss"], known["step"], known["waited"]

    @property
    def over(self) -> bool:
        """Whether the patience is at its end."""
        return 0 < self.watching.patience <= self.waited

    @property
    def kept(self) -> int:
        """The step of the checkpoint to keep; 0 for none."""
        return self.step if self.watching.best else 0

    def state(self) -> dict[str, Any]:
        """Return what Trainer writes into trainer_state.json."""
        return {"args": {}, "attributes": {"loss": self.loss, "step": self.step, "waited": self.waited}}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.watching.best and state.global_step >= state.max_steps:
            control.should_evaluate = True  # else the last model could not be the best

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        loss = given["metrics"].get(self.metric)
        if loss is None or not state.global_step:  # another set, or before anything was learned
            return
        before, threshold = self.loss, self.watching.threshold
        if math.isfinite(loss) and (before is None or loss < before):  # else the model is broken: never to be saved
            self.loss, self.step = loss, state.global_step
            if self.watching.best:
                self.ensure_room()
                control.should_save = True
        self.waited = 0 if before is None or loss < before - threshold else self.waited + 1
        if self.over:
            control.should_training_stop = True

    def take(self, trainer: Trainer, store: Store, context: Context, step: int) -> int:
        """Tell how it ended at `step`; give the model the weights of the best checkpoint, if so wished.

        Returns the step whose weights the model has then.
        """
        told = {"step": self.step, "loss": self.loss, "end": step}
        if self.over:
            context.events.write("warning", code="watching.stopped", place="watching.patience",
                                 params={**told, "count": self.waited})  # fmt: skip
        if not self.kept or self.kept == step:
            return step
        checkpoint = store.folder / f"checkpoint-{self.kept}"
        if fault := check(checkpoint):
            params = {"name": checkpoint.name, "what": fault}
            context.events.write("warning", code="watching.best_lost", place="watching.best", params=params)
            return step
        trainer._load_from_checkpoint(str(checkpoint))
        context.events.write("warning", code="watching.best_taken", place="watching.best", params=told)
        return self.kept


def recall(callback: ExportableState, checkpoint: Path) -> dict[str, Any]:
    """Return what a callback knew when a checkpoint was written; what it knows now where the checkpoint is too old."""
    told = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["stateful_callbacks"]
    return told.get(type(callback).__name__, callback.state())["attributes"]
