"""Train a prepared model: Trainer is built, resumed from the newest good checkpoint, watched and stopped."""

from __future__ import annotations

import shutil
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PrinterCallback, Trainer

from core.checkpoints import Store
from core.config import Run
from core.data.batch import Lessons
from core.data.encode import Encoded
from core.data.pack import Flat, Order, Packed, Padder, packed
from core.data.stream import Stream
from core.errors import InputError, NotFinite, Stopped
from core.models.varlen import isolate
from core.training.arguments import arguments, total_steps
from core.training.watch import Watch
from core.workspace import Context


class Ordered(Trainer):
    """Trainer with an order of rows that a resumed run can repeat."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        by_length = self.args.train_sampling_strategy == "group_by_length"
        lengths = cast(Encoded | Packed, self.train_dataset).lengths_B.tolist()
        return Order(lengths, group, self.args.seed, by_length=by_length)


def fit(run: Run, context: Context, model: PreTrainedModel, lessons: Lessons, pad_id: Any) -> int:
    """Train to the last step; return its number.

    Raises Stopped when asked to stop, NotFinite when the loss broke; both leave the last good checkpoint.
    """
    if context.stop.is_set():
        raise Stopped("run.stopped")
    train, collator = _layout(run, model, lessons, pad_id)
    total = run.training.max_steps if isinstance(train, Stream) else total_steps(len(train), run.training)
    store = Store(context.folder, lessons.fingerprint, run.saving.keep)
    found = store.newest(context.events)
    size, counts = _size(model), _count(model, lessons, total)
    store.check_space(size, copies=1 if found else run.saving.keep + 1)
    step = found[1] if found else 0
    phase = "stream" if isinstance(train, Stream) else "train"
    context.events.write("phase", phase=phase, params=counts, total=total, resumed=step)

    watch = Watch(context, run.training, store, size)
    trainer = Ordered(
        model=model,
        args=arguments(
            run, total, evaluates=len(lessons.eval) > 0, pads=isinstance(collator, Padder), folder=store.writing
        ),
        data_collator=collator,
        train_dataset=train,  # type: ignore[arg-type]  # a sequence of rows is all that Trainer needs
        eval_dataset=lessons.eval,  # type: ignore[arg-type]
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)  # Watch prints, one line a report
    if found and step >= total:
        trainer._load_from_checkpoint(str(found[0]))  # train() would go one step too far
        return total
    try:
        trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    finally:
        shutil.rmtree(store.writing, ignore_errors=True)
    if watch.broken:
        raise NotFinite("loss.not_finite", count=watch.broken, step=trainer.state.global_step)
    if trainer.state.global_step < total:
        raise Stopped("run.stopped", step=trainer.state.global_step, total=total)
    return total


def _layout(
    run: Run, model: PreTrainedModel, lessons: Lessons, pad_id: Any
) -> tuple[Encoded | Packed | Stream, Flat | Padder]:
    """Return (what a step draws from, how it becomes a batch): packs if wanted, and no padding if the model can."""
    train, packing = lessons.train, run.data.packing
    apart = isolate(model)
    if packing == "always" and not apart:
        raise InputError("data.packing", "data.packing", model=model.config.model_type)
    if isinstance(train, Stream):
        train.pack = train.pack and apart
    elif apart and (packing == "always" or (packing == "auto" and lessons.counts.all_plain)):
        return packed(train, run.data.cutoff), Flat()
    return train, Flat() if apart else Padder(pad_id)


def _count(model: PreTrainedModel, lessons: Lessons, total: int) -> dict[str, int]:
    """Return the figures of a run; raise InputError when nothing learns."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trainable:
        raise InputError("tuner.nothing", "tuner")
    return {
        "rows": 0 if isinstance(lessons.train, Stream) else len(lessons.train),
        "held_out": len(lessons.eval),
        "tokens": 0 if isinstance(lessons.train, Stream) else len(lessons.train.ids_N),
        "trainable": trainable,
        "parameters": model.num_parameters(),  # which knows how many numbers lie in a packed weight
        "steps": total,
    }


def _size(model: PreTrainedModel) -> int:
    """Return about how many bytes a checkpoint takes: the weights, and two numbers of Adam for each that learns."""
    weights = [p for p in model.parameters() if p.requires_grad or not isinstance(model, PeftModel)]
    learning = sum(p.numel() for p in weights if p.requires_grad)
    return sum(p.numel() * p.element_size() for p in weights) + 2 * 4 * learning + (1 << 20)
