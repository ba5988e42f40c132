"""Train a prepared model: Trainer is built, resumed from the newest good checkpoint, watched and stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from core.checkpoints import Store, telling_full_disk
from core.config import Run
from core.data.batch import Lessons
from core.data.encode import Encoded
from core.data.pack import Flat, Packed, Padder, packed
from core.data.pairs import Apart, Pairs, Sides
from core.data.prompts import Asked, Prompts
from core.data.stream import Stream
from core.errors import InputError, NotFinite, Stopped
from core.models import damage, liger
from core.models.device import pick_device
from core.models.identity import identity, of_judge
from core.models.loading import model_folder
from core.models.moe import balance
from core.models.precision import narrow, upcast_logits, upcast_norms
from core.models.s2 import group_length, shift
from core.models.varlen import isolate
from core.team import Team
from core.training import engines
from core.training.arguments import arguments, total_steps
from core.training.best import Best
from core.training.exploring import Exploring, Policy
from core.training.halt import Halt
from core.training.loggers import Reports
from core.training.objective import Objective
from core.training.ordered import Ordered
from core.training.preference import AgainstReference
from core.training.reference import ask
from core.training.samples import Drawn, Samples
from core.training.shared import ExploringTogether, Shared
from core.training.stall import Watchdog
from core.training.watch import Watch
from core.tuners import quantized
from core.workspace import Context, tuned

Rows = Encoded | Packed | Pairs | Prompts
Collator = Flat | Padder | Sides | Apart | Asked


def fit(
    run: Run, context: Context, model: PreTrainedModel, lessons: Lessons, tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
) -> int:  # fmt: skip
    """Train to the last step, or until it is time to end; return the step whose weights the model has then.

    Raises Stopped when asked to stop, NotFinite when the loss broke; both leave the last good checkpoint.
    """
    team = context.team
    if team.any(context.stop.is_set()):
        raise Stopped("run.stopped")
    _settle(run, context, model)
    train, held_out, rows, collator = _layout(run, context, model, lessons, tokenizer.pad_token_id, objective)
    length = 0 if isinstance(train, Stream) else len(train)  # of a stream the step limit is known
    total = total_steps(length, run.training, team.size, even=run.stage.draws)
    began = identity(model_folder(run.model, context.workspace))
    told_by = of_judge(tuned(judge, context.workspace)) if (judge := run.stage.judge()) else ""
    store = Store(context.folder, lessons.fingerprint, run.saving.keep, team.size, run.launcher.state, began, told_by)
    size, counts = _size(model), _count(model, lessons, total, 2 if objective.paired else 1)
    found = _found(run, store, context, size)
    best = Best(run.watching, next(iter(held_out), ""), found and found[0], lambda: _make_room(store, context, size))
    watch = Watch(context, run, store, size, best, found and found[0])
    watchdog = Watchdog(context)
    weights = 0 if quantized(model) else counts["parameters"]
    facts = {"evaluates": bool(held_out), "pads": collator.pads, "weights": weights, "resumed": bool(found)}
    trainer = _kind(run, objective, rows, team, Halt(watch, run.hardware.grace))(
        model=model,
        args=arguments(run, total, folder=store.writing, **facts),
        data_collator=collator,
        train_dataset=train,  # type: ignore[arg-type]  # a sequence of rows is all that Trainer needs
        eval_dataset=held_out.get("", held_out),  # type: ignore[arg-type]
        callbacks=[watch, best, watchdog, *_others(run, context, objective, found)],
        pace=run.tuner.pace,
        objective=objective,
        team=team,
    )
    _arrange(run, trainer, model)
    _sample(run, context, trainer, lessons, tokenizer, watch)
    trainer.remove_callback(PrinterCallback)  # Watch prints, one line a report
    if objective.asks:
        _ask(trainer, rows, lessons, context, objective)
    phase = "stream" if isinstance(train, Stream) else "train"
    context.events.write("phase", phase=phase, params=counts, total=total, resumed=found[1] if found else 0)
    with watchdog:
        step = _train(trainer, watch, store, found, total)
    return best.take(trainer, store, context, step)


def _found(run: Run, store: Store, context: Context, size: int) -> tuple[Path, int] | None:
    """Return (the checkpoint to go on from, its step), the same in every process; None where there is none.

    Raises InputError unless there is room for those that will be written, of `size` bytes each.
    """
    found = None
    if context.team.rank == 0:
        found = store.newest(context.events)
        store.check_space(size, copies=1 if found else store.keep + 1 + run.watching.best)
    step = context.team.agreed(found[1] if found else -1)
    return (store.at(step), step) if step >= 0 else None


def _make_room(store: Store, context: Context, size: int) -> None:
    if context.team.rank == 0:
        store.check_space(size)


def _others(run: Run, context: Context, objective: Objective, found: tuple[Path, int] | None) -> list[TrainerCallback]:
    """Return what else is called on the way: trackers, and the mean and spread that an objective keeps.

    These are as the checkpoint has them that the run goes on from.
    """
    kept = objective.running if isinstance(objective, AgainstReference | Policy) else None
    if kept:
        kept.go_on(context.team, found and found[0])
    return [*([kept] if kept else []), *([] if context.team.rank else [Reports(run, context.folder)])]


def _kind(run: Run, objective: Objective, rows: Flat | Padder, team: Team, halt: Halt) -> Callable[..., Ordered]:
    """Return the Trainer for an objective, in one process or several, or in one that divides the model."""
    if isinstance(objective, Policy):
        return partial(ExploringTogether if team.size > 1 else Exploring, rows=rows, halt=halt)
    return Shared if team.size > 1 or any(run.launcher.divides) else Ordered


def _train(trainer: Ordered, watch: Watch, store: Store, found: tuple[Path, int] | None, total: int) -> int:
    """Train from a checkpoint on, or from the beginning; return the last step. Raises what stopped it before."""
    if found and (found[1] >= total or watch.best.over):
        trainer._load_from_checkpoint(str(found[0]))  # train() would go one step too far
        return found[1]
    try:
        with telling_full_disk(store.folder, watch.size):
            trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
        trainer.team.wait()  # until none looks into the folder any more
    finally:
        if trainer.team.rank == 0:
            shutil.rmtree(store.writing, ignore_errors=True)
    step = trainer.state.global_step
    if watch.broken:
        damage.find(cast(PreTrainedModel, trainer.model))
        raise NotFinite("loss.not_finite" if watch.moved else "loss.never_finite", count=watch.broken, step=step)
    if step < total and not watch.best.over:
        raise Stopped("run.stopped", step=step, total=total)
    return step


def _layout(
    run: Run, context: Context, model: PreTrainedModel, lessons: Lessons, pad_id: Any, objective: Objective
) -> tuple[Rows | Stream, Mapping[str, Rows], Flat | Padder, Collator]:
    """Return (what a step draws from, the evaluation sets by name, how rows become batches, how both of them do).

    Packs if wanted, and no padding if the model can keep rows in one line apart.
    """
    train, held_out, packing = lessons.train, lessons.eval, run.data.packing
    if lessons.seen and packing == "always":
        raise InputError("data.packing_media", "data.packing")
    # a row in one line with others could be told apart, its files could not; and eyes don't look forwards only
    apart = not lessons.seen and isolate(model)
    if run.training.s2:
        _shift(run, context, model)
    if packing == "always" and not apart:
        raise InputError("data.packing", "data.packing", model=model.config.model_type)
    collator = Flat() if apart else Padder(pad_id, lessons.album)
    if objective.paired:
        pairs = {name: Pairs(rows) for name, rows in held_out.items()}
        both = (Apart if run.stage.wanted[0] == "feedback" else Sides)(collator)
        return train if isinstance(train, Stream) else Pairs(train), pairs, collator, both
    if isinstance(train, Stream):
        train.pack = train.pack and apart
        return train, held_out, collator, collator
    if run.stage.draws:
        return Prompts(train), held_out, collator, Asked()
    if apart and (packing == "always" or (packing == "auto" and lessons.counts.all_plain)):
        return packed(train, run.data.cutoff), held_out, collator, collator
    return train, held_out, collator, collator


def _ask(trainer: Any, rows: Flat | Padder, lessons: Lessons, context: Context, objective: Any) -> None:
    """Let the examples know what the model says of them before it learns."""
    name = f"reference_{lessons.fingerprint[:16]}"

    def asked(dataset: Any, part: str) -> Any:
        return ask(trainer, dataset, rows, f"{name}_{part}", objective.tail, context)

    held_out = cast(Any, trainer.eval_dataset)
    with context.team.in_turn():
        trainer.train_dataset = asked(trainer.train_dataset, "train_dataset")
        if isinstance(held_out, dict):
            trainer.eval_dataset = {key: asked(own, f"eval_{at}") for at, (key, own) in enumerate(held_out.items())}
        else:
            trainer.eval_dataset = asked(held_out, "eval_dataset")


def _settle(run: Run, context: Context, model: PreTrainedModel) -> None:
    """Hold and compute the parts of the model as the settings ask for: where, and in which number formats."""
    training, device = run.training, pick_device(run.hardware).type
    run.optimizer.check(device)
    engines.prepare(run, model)
    if run.model.precision == "fp16" and model.device.type == "cpu":
        context.events.write("warning", code="precision.fp16_cpu", place="model.precision", params={})
    if run.model.precision == "pure_bf16":
        narrow(model)
    if training.liger:
        liger.check(device)
        liger.fuse(model)
    if training.upcast_norms:
        upcast_norms(model)
    if training.upcast_logits:
        upcast_logits(model)
    if training.offload_activations and model.device.type == "cpu":
        context.events.write("warning", code="precision.nothing_to_offload", place="training.offload_activations",
                             params={})  # fmt: skip


def _arrange(run: Run, trainer: Ordered, model: PreTrainedModel) -> None:
    """Let Trainer have optimizer and engine, count the loss of the routers, and let activations wait elsewhere."""
    trainer.build, trainer.wrapper = run.optimizer.build, run.launcher.wrapper
    trainer.offload = run.training.offload_activations and model.device.type != "cpu"
    trainer.router_aux_loss = run.training.router_aux_loss
    if run.training.router_aux_loss:
        balance(model)


def _sample(
    run: Run, context: Context, trainer: Ordered, lessons: Lessons, tokenizer: PreTrainedTokenizerBase, watch: Watch
) -> None:
    """Let the model answer some rows of the first evaluation set after each evaluation, if wanted.

    What a stage draws by itself is shown instead.
    """
    if isinstance(trainer, Exploring):
        if run.watching.samples and context.team.rank == 0:
            trainer.drawn = Drawn(run.watching, context, tokenizer)
        return
    if not lessons.eval and (run.watching.samples or run.watching.patience or run.watching.best):
        raise InputError("watching.no_rows", "data.eval_share")
    if run.watching.samples:
        size = 2 if run.stage.paired else 1  # of a pair the first row is asked
        rows = next(iter(lessons.eval.values()))
        samples = Samples(run.watching, context, tokenizer, rows, size, lessons.album)

        def sample() -> None:
            if context.team.rank == 0:
                samples.ask(trainer, run.training.batch_size)
            context.team.wait()
            watch.rest()

        trainer.sample = sample


def _shift(run: Run, context: Context, model: PreTrainedModel) -> None:
    """Let the model learn with S2; with a notice and full attention where the cutoff can't be cut into whole groups."""
    share, cutoff = run.training.s2, run.data.cutoff
    if group := group_length(cutoff, share):
        shift(model, group)
    else:
        params = {"share": share, "cutoff": cutoff}
        context.events.write("warning", code="s2.length", place="training.s2", params=params)


def _count(model: PreTrainedModel, lessons: Lessons, total: int, rows: int) -> dict[str, int]:
    """Return the figures of a run; rows: of an example."""
    return {
        "rows": 0 if isinstance(lessons.train, Stream) else len(lessons.train) // rows,
        "held_out": lessons.held_out // rows,
        "tokens": 0 if isinstance(lessons.train, Stream) else len(lessons.train.ids_N),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": model.num_parameters(),  # which knows how many numbers lie in a packed weight
        "steps": total,
    }


def _size(model: PreTrainedModel) -> int:
    """Return about how many bytes a checkpoint takes: the weights, and two numbers of Adam for each that learns."""
    weights = [p for p in model.parameters() if p.requires_grad or not isinstance(model, PeftModel)]
    learning = sum(p.numel() for p in weights if p.requires_grad)
    return sum(p.numel() * p.element_size() for p in weights) + 2 * 4 * learning + (1 << 20)
