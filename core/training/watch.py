"""The one callback: events out, stop in, no step into NaN unseen, checkpoints published."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from core.checkpoints import Store
from core.errors import InputError
from core.run import Run
from core.training import coach
from core.training.best import Best, recall
from core.workspace import Context


class Watch(TrainerCallback, ExportableState):
    """Reports what Trainer does, and tells it to stop.

    What it has not reported yet goes into every checkpoint, so that a resumed run tells what an unbroken one tells.
    """

    def __init__(self, context: Context, run: Run, store: Store, size: int, best: Best, found: Path | None) -> None:
        """found: the checkpoint that the run goes on from."""
        self.context, self.training, self.stage = context, run.training, run.stage
        self.store, self.size, self.best = store, size, best
        self.losses: list[float] = []
        """Of the steps since the last report."""
        self.metrics: list[dict[str, float]] = []
        """Of the same steps, what the stage tells beside its loss."""
        self.broken = 0
        """Steps in a row whose loss or gradient was not finite."""
        self.moved = found is not None or self.stage.draws
        """Whether anything can have been learned: what is drawn is learned from several times in the first step."""
        self.zeros = 0
        """Steps whose loss was exactly 0."""
        self.tokens = 0
        self.advised = {warning["code"] for warning in context.events.state.warnings}
        self.clock = time.monotonic()
        if found:
            known = recall(self, found)
            self.losses, self.metrics = known["losses"], known["metrics"]

    def state(self) -> dict[str, Any]:
        """Return what Trainer writes into trainer_state.json."""
        return {"args": {}, "attributes": {"losses": self.losses, "metrics": self.metrics}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.tokens, self.clock = state.num_input_tokens_seen, time.monotonic()
        kept: Any = state.stateful_callbacks
        kept.setdefault(type(self).__name__, self.state())  # a checkpoint of an earlier version has none

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # nowhere else: a checkpoint of a half-done step would resume to another curve
        if self.context.team.any(self.context.stop.is_set()):
            control.should_save = control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs: dict[str, float] = given["logs"]
        if "loss" not in logs:
            return
        state.log_history.clear()  # events.jsonl has it all; every checkpoint would carry it, longer each time
        self._guard(logs, state, control, skipped=given["optimizer"].step_was_skipped)
        if control.should_save and self.context.team.rank == 0:
            self.store.check_space(self.size)
        if self.context.team.rank:
            return
        self.losses.append(logs["loss"])
        self.metrics.append(own(logs))
        if state.global_step % self.training.log_every == 0 or control.should_training_stop:
            self._report(state, logs)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        metrics: dict[str, float] = given["metrics"]
        prefix = next(name for name in metrics if name.endswith("_runtime")).removesuffix("_runtime")
        seconds = round(metrics[f"{prefix}_runtime"], 3)
        told = own({name.removeprefix(f"{prefix}_"): value for name, value in metrics.items()})
        more = {"metrics": told} if told else {}
        self.context.events.write("eval", step=state.global_step, set=prefix.removeprefix("eval").removeprefix("_"),
                                  loss=metrics[f"{prefix}_loss"], seconds=seconds, **more)  # fmt: skip
        self._advise()
        self.rest()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.context.team.wait()  # until each process has written its part
        if self.context.team.rank == 0:
            path = self.store.publish(state.global_step, self.best.kept)
            place = str(path.relative_to(self.context.folder))
            self.context.events.write("saved", what="checkpoint", path=place, step=state.global_step)
        self.rest()

    def rest(self) -> None:
        """Count the time up to now as no part of a step."""
        self.clock = time.monotonic()

    def _guard(self, logs: dict[str, float], state: TrainerState, control: TrainerControl, *, skipped: bool) -> None:
        """Count broken steps; keep a broken model out of the checkpoints; stop when there are too many in a row.

        Raises InputError for a run that has nothing to learn from its first step on.
        """
        # fp16 finds its scale by overflowing: such a step is skipped and harms nothing
        finite = math.isfinite(logs["loss"]) and (skipped or math.isfinite(logs.get("grad_norm", 0.0)))
        self.broken = 0 if finite else self.broken + 1
        self.moved |= finite and not skipped and logs["learning_rate"] > 0
        if self.broken:
            control.should_save = False
        if self.broken >= self.training.nan_patience:
            control.should_training_stop = True
        # answers that are drawn may all be worth the same, until one is found that is worth more
        self.zeros += logs["loss"] == 0 and not self.stage.draws
        patience = self.training.nan_patience
        if self.stage.rests:  # where one example of any weight may yet come, up to the last step
            patience = max(patience, state.max_steps)
        if self.zeros == state.global_step == patience:  # from the first step on
            raise InputError("loss.zero", "data", count=self.zeros)

    def _report(self, state: TrainerState, logs: dict[str, float]) -> None:
        now, tokens = time.monotonic(), state.num_input_tokens_seen
        loss = sum(self.losses) / len(self.losses)
        speed = (tokens - self.tokens) / max(now - self.clock, 1e-9)
        told = {name: [one[name] for one in self.metrics if name in one] for one in self.metrics for name in one}
        more = {"metrics": {name: sum(values) / len(values) for name, values in told.items()}} if told else {}
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
            **more,
        )
        print(f"step {state.global_step}/{state.max_steps}  loss {loss:.4f}  {speed:,.0f} tokens/s", flush=True)
        self.tokens, self.clock = tokens, now
        if state.global_step % self.training.log_every == 0:  # else the run was stopped, and tells them when it goes on
            self.losses, self.metrics = [], []
        self._advise()

    def _advise(self) -> None:
        """Tell what looks wrong in the curves, each thing once."""
        for found in coach.look(self.context.events.state, self.stage.likelier):
            if found.code not in self.advised:
                self.advised.add(found.code)
                self.context.events.write("warning", code=found.code, place=found.place, params=found.params)


def own(logs: dict[str, float]) -> dict[str, float]:
    """Return what a stage tells beside its loss (objective.Metrics), of all that Trainer logs."""
    return {name: value for name, value in logs.items() if "/" in name or name == "aux_loss"}


def _memory() -> int:
    """Return the bytes in use: the peak of the GPU, or of this process where there is none."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
