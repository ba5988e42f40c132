"""One run from its settings to what it saves, step by step. Stages differ in their rows and in what they minimise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from inspect import isfunction
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from core import bases
from core.checkpoints import telling_full_disk
from core.config import Run
from core.data import batch
from core.data.batch import Lessons
from core.errors import InputError
from core.models import bits, value_head, vocabulary
from core.models.loading import load_model, load_tokenizer, model_folder
from core.models.senses import Senses
from core.training import engines, results
from core.training.fit import fit
from core.training.objective import Objective
from core.training.phases import Phases
from core.training.preference import undropped
from core.tuners import Tuner
from core.workspace import Context, tuned

Prepare = Callable[[Any, PreTrainedTokenizerBase], tuple[Any, Objective]]


def train(
    run: Run, context: Context, objective: Objective | Prepare, *, values: bool = False, **options: bool
) -> dict[str, float]:
    """Train, save and return the metrics.

    objective: what is minimised, or a function that makes it, and what else the model needs for it, of the model and
    the tokenizer. values: a value head is laid beside the model, learns with it and is saved: that of what the run
    begins with, where it has one. options: how rows are encoded, as data.batch.load takes it.
    """
    phases, team = Phases(context), context.team
    with team.in_turn():
        phases.begin("load_tokenizer")
        tokenizer = load_tokenizer(run.model, context.workspace, context.events, template=run.data.template)
        phases.begin("load_data")
        lessons = _rows(run, context, tokenizer, phases, options)
    phases.begin("load_model")
    bases.warn_of(run.tuner.starts(), run.model, context, f"tuner.{run.tuner.kind}.start")
    model = load_model(
        run.model, context.workspace, run.hardware, training=True, longest=run.data.cutoff,
        aside=run.launcher.divides[1], check=partial(_check_made, run.tuner.as_begun(context.workspace)),
    )  # fmt: skip
    if run.stage.compares:
        undropped(model)
    tokens = vocabulary.fit(model, tokenizer, run.model)
    phases.check_context(model.config, lessons)
    set_seed(run.training.seed)
    with telling_full_disk(context.folder):
        with team.in_turn():
            model = run.tuner.attach(model, context.folder, tokens, lessons.known)
        if isfunction(objective):
            model, objective = objective(model, tokenizer)
        if values:
            with team.in_turn():
                value_head.attach(model, context.folder / "head", _begun(run, context))
        steps = fit(run, context, model, lessons, tokenizer, cast(Objective, objective))
        if run.data.streaming:
            phases.warn_of(lessons.counts, run.data.cutoff)
        phases.begin("save", step=steps, total=steps)
        head = value_head.detach(model) if values else None
        metrics: dict[str, float] = {}
        with engines.whole(run, model):
            if team.rank == 0:
                metrics = _keep(run, context, model, tokenizer, steps, head)
        team.wait()
        return metrics


def _begun(run: Run, context: Context) -> Iterator[tuple[Path, str]]:
    """Yield where a value head from before may lie, each with the place of its setting: the last adapter, the model."""
    for name in run.tuner.starts()[-1:]:
        place = f"tuner.{run.tuner.kind}.start"
        yield tuned(name, context.workspace, place), place
    yield model_folder(run.model, context.workspace), "model.path"


def _check_made(tuner: Tuner, made: PreTrainedModel) -> None:
    """Raise InputError for settings that a model has no place for; it has no weights yet."""
    if layers := bits.packed(made):
        tuner.check_packed(layers, eight=bits.in_eight(layers))
    tuner.check_made(made)


def _keep(
    run: Run, context: Context, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: int, head: Any
) -> dict[str, float]:
    """Save what was learned, and write what there is to see; return the metrics."""
    saved = run.tuner.save(model, tokenizer, context.folder)
    if head:
        value_head.save(head, saved)
    context.events.write("saved", what=saved.name, path=saved.name, step=steps)
    return results.write(context.folder, context.events.state)


def _rows(
    run: Run, context: Context, tokenizer: PreTrainedTokenizerBase, phases: Phases, options: dict[str, Any]
) -> Lessons:
    """Return what is learned from, read and encoded. Raises InputError for feedback of one kind only."""
    data = run.data.model_copy(update={"eval_share": 0.0}) if run.stage.draws else run.data
    lessons = batch.load(
        data, context.workspace, tokenizer, run.training.seed, wanted=run.stage.wanted, advance=phases.advance,
        senses=Senses(model_folder(run.model, context.workspace)), **options,
    )  # fmt: skip
    if run.data.streaming:
        return lessons  # they are read while the model learns
    phases.warn_of(lessons.counts, run.data.cutoff)
    liked_B: Any = lessons.train.liked_B  # type: ignore[union-attr]
    if liked_B is not None and liked_B.all() == liked_B.any():
        raise InputError("data.one_feedback", "data.train")
    return lessons
