"""The one callback: events out, stop in, no step into NaN unseen, checkpoints published."""

from __future__ import annotations

import math
import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.checkpoints import Store
from core.sections import Training
from core.workspace import Context


class Watch(TrainerCallback):
    """Reports what Trainer does, and tells it to stop."""

    def __init__(self, context: Context, training: Training, store: Store, size: int) -> None:
        self.context, self.training, self.store, self.size = context, training, store, size
        self.losses: list[float] = []
        """Of the steps since the last report."""
        self.broken = 0
        """Steps in a row whose loss or gradient was not finite."""
        self.tokens = 0
        self.clock = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.tokens, self.clock = state.num_input_tokens_seen, time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # nowhere else: a checkpoint of a half-done step would resume to another curve
        if self.context.stop.is_set():
            control.should_save = control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs: dict[str, float] = given["logs"]
        if "loss" not in logs:
            return
        state.log_history.clear()  # events.jsonl has it all; every checkpoint would carry it, longer each time
        self._guard(logs, control, skipped=given["optimizer"].step_was_skipped)
        if control.should_save:
            self.store.check_space(self.size)
        self.losses.append(logs["loss"])
        if state.global_step % self.training.log_every == 0 or control.should_training_stop:
            self._report(state, logs)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        metrics: dict[str, float] = given["metrics"]
        seconds = round(metrics["eval_runtime"], 3)
        self.context.events.write("eval", step=state.global_step, loss=metrics["eval_loss"], seconds=seconds)
        self.clock = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        path = self.store.publish(state.global_step)
        place = str(path.relative_to(self.context.folder))
        self.context.events.write("saved", what="checkpoint", path=place, step=state.global_step)
        self.clock = time.monotonic()

    def _guard(self, logs: dict[str, float], control: TrainerControl, *, skipped: bool) -> None:
        """Count broken steps; keep a broken model out of the checkpoints; stop when there are too many in a row."""
        # fp16 finds its scale by overflowing: such a step is skipped and harms nothing
        finite = math.isfinite(logs["loss"]) and (skipped or math.isfinite(logs.get("grad_norm", 0.0)))
        self.broken = 0 if finite else self.broken + 1
        if self.broken:
            control.should_save = False
        if self.broken >= self.training.nan_patience:
            control.should_training_stop = True

    def _report(self, state: TrainerState, logs: dict[str, float]) -> None:
        now, tokens = time.monotonic(), state.num_input_tokens_seen
        loss = sum(self.losses) / len(self.losses)
        speed = (tokens - self.tokens) / max(now - self.clock, 1e-9)
        self.context.events.write(
            "step",
            step=state.global_step,
            total=state.max_steps,
            epoch=round(logs["epoch"], 4),
            loss=loss,
            lr=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            tokens=tokens,
            tokens_per_second=round(speed, 1),
            memory=_memory(),
        )
        print(f"step {state.global_step}/{state.max_steps}  loss {loss:.4f}  {speed:,.0f} tokens/s", flush=True)
        self.losses, self.tokens, self.clock = [], tokens, now


def _memory() -> int:
    """Return the bytes in use: the peak of the GPU, or of this process where there is none."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
