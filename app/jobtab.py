"""What the tabs of background jobs (Evaluate, Export) share: a form, Start and Stop, and one job that is shown.

Which job is shown stands in a dropdown of all of them, the newest first; everything about it is read from its folder.
So a reload, a second browser and a restarted board show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from app import i18n, jobs, show
from app.form import Form
from app.i18n import tr
from app.page import QUIET, Page
from core import config, runs
from core.errors import InputError
from core.runs import View

TICK_SECONDS = 1.0
MOST = 100
"""Earlier jobs offered at most."""


@dataclass
class Bench:
    """The parts of such a tab."""

    form: Form
    start: gr.Button
    stop: gr.Button
    shown: gr.Dropdown
    """The job that is shown, by the name of its run."""
    progress: gr.HTML
    timer: gr.Timer


Result = Callable[[str, View | None], Sequence[Any]]
"""(language, view of a job that has ended or None) -> one update for each component of its result."""


def form_part(page: Page, key: str, form: Callable[[], Form]) -> tuple[Form, gr.Button, gr.Button]:
    """Lay out the form with its buttons."""
    with gr.Column(elem_classes=["tb-form"]):
        built = form()
        with gr.Row(elem_classes=["tb-actions"]):
            start = gr.Button(variant="primary", elem_id=f"tb-{key}-start")
            stop = gr.Button(variant="stop", visible=False, elem_id=f"tb-{key}-stop")
    return built, page.say(start, value=f"ui.{key}.start"), page.say(stop, value=f"ui.{key}.stop")


def shown_part(page: Page, key: str) -> tuple[gr.Dropdown, gr.HTML]:
    """Lay out the choice of the job that is shown, and its progress."""
    # a custom value: the list of a page may be older than that of the board, which the handler checks anyway
    shown = gr.Dropdown([], allow_custom_value=True, visible=False, elem_id=f"tb-{key}-shown")
    return page.say(shown, label=f"ui.{key}.shown"), gr.HTML(elem_id=f"tb-{key}-progress", min_height=0)


def wire(page: Page, key: str, bench: Bench, result: Result, outputs: Sequence[Any]) -> None:
    """Let the parts of a tab work together; `result` fills `outputs` when a job has ended."""
    form, kind = bench.form, bench.form.kind
    state = [page.language, form.wrong, *form.inputs]

    def begin(language: str, before: list[str], *values: Any) -> list[Any]:
        try:
            folder = jobs.start(form.job(values), page.workspace)
        except InputError as error:
            return [*form.updates(language, values, problems=error.problems, before=before, unfold=True), gr.update()]
        return [*form.updates(language, values, before=before), _listed(page.workspace, kind, language, folder.name)]

    def look(language: str, name: Any) -> list[Any]:
        view = _view(str(name or ""), page.workspace)
        active = view is not None and (view.active or view.status == "new")
        told = show.head(language, view) if view else _empty(language, key)
        return [told, gr.update(visible=active), gr.Timer(active=active), *result(language, None if active else view)]

    bench.start.click(begin, state, [*form.outputs, bench.shown], **QUIET)
    bench.stop.click(lambda name: _stop(str(name or ""), page.workspace), bench.shown, None, **QUIET)
    gr.on([bench.shown.change, bench.timer.tick, page.language.change], look, [page.language, bench.shown],
          [bench.progress, bench.stop, bench.timer, *outputs], **QUIET)  # fmt: skip
    listed = partial(_listed, page.workspace, kind)
    gr.on(None, lambda: listed("en", None), [], bench.shown, **QUIET)
    page.language.change(listed, [page.language, bench.shown], bench.shown, **QUIET)


def follow_base(page: Page, form: Form, field: str) -> None:
    """When somebody chooses what is tuned, choose the base that it was tuned from, too."""
    state = [page.language, form.wrong, *form.inputs]

    def choose(language: str, before: list[str], *values: Any) -> list[Any]:
        given = dict(zip((s.path for s in form.settings), values, strict=True))
        chosen = given[field][0] if isinstance(given[field], list) and given[field] else given[field]
        try:
            model = _base(form, str(chosen), page.workspace) if chosen else {}
        except (InputError, OSError):
            model = {}  # an odd folder: the form says so at Start
        return form.updates(language, list((given | model).values()), before=before, fill=bool(model))

    picked: Any = form.fields[field]  # gradio makes its events at run time
    form.settle(picked.input(choose, state, form.outputs, **QUIET))


def _base(form: Form, reference: str, workspace: Path) -> dict[str, Any]:
    """Return the values of the fields that say which base a run or an adapter was tuned from, and how it was loaded."""
    model = jobs.base(reference, workspace)
    if not model:
        return {}
    job = config.resolve({"model": {key: value for key, value in model.items() if _shown(form, key)}}, job=form.kind)
    values = zip(form.settings, form.values(job), strict=True)
    return {s.path: value for s, value in values if s.path.split(".")[0] == "model" and s.path.split(".")[1] in model}


def _shown(form: Form, key: str) -> bool:
    return f"model.{key}" in form.fields


def follow_wish(page: Page, form: Form, field: str, tab: gr.Tab | None = None) -> None:
    """Choose what was tuned, and its base: the run that the reader asks for in the live panel.

    tab: where, if nothing is chosen yet when the reader comes, the run that the page shows is, else the newest.
    """
    paths = [path for path in form.fields if path.startswith("model.")]
    fields = [form.fields[field], *(form.fields[path] for path in paths)]

    def choose(run: str, chosen: Any) -> list[Any]:
        return adopt((wished(page, run, form.kind) if not chosen else "", 0), chosen)

    def adopt(wish: tuple[str, int], chosen: Any) -> list[Any]:
        if not _fits(page.workspace / "runs" / wish[0], form.kind):
            return [gr.skip()] * len(fields)
        model = _base(form, wish[0], page.workspace)
        told = [model[path] if path in model else gr.skip() for path in paths]
        return [[wish[0]] if isinstance(chosen, list) else wish[0], *told]

    if tab:
        retell(page, form, tab.select(choose, [page.run, fields[0]], fields, **QUIET))
    retell(page, form, page.subject.change(adopt, [page.subject, fields[0]], fields, **QUIET))


def wished(page: Page, run: str, kind: str) -> str:
    """Return the run with tuned weights for a job of a kind that somebody most likely means; "" where there is none."""
    names = [name for name in jobs.tuned_runs(page.workspace) if _fits(page.workspace / "runs" / name, kind)]
    return run if run in names else next(iter(names), "")


def _fits(folder: Path, kind: str) -> bool:
    """Return whether a run is a training from which a job of a kind goes on: what only judges can be exported alone."""
    run = jobs.trained(folder)
    return bool(run and (run.stage.answers or kind == "export"))


def retell(page: Page, form: Form, event: Dependency) -> None:
    """After an event that set values, let the heads of the cards tell them, in the language of that moment."""

    def tell(language: str, before: list[str], *values: Any) -> list[Any]:
        return form.updates(language, values, before=before)

    event.then(tell, [page.language, form.wrong, *form.inputs], form.outputs, **QUIET)


def _listed(workspace: Path, kind: str, language: str, chosen: str | None) -> Any:
    """Return the list of all jobs of a kind with one chosen, else the newest."""
    folders = jobs.of_kind(kind, workspace)[:MOST]
    choices = [(_label(language, folder), folder.name) for folder in folders]
    value = chosen or (folders[0].name if folders else None)
    return gr.update(choices=choices, value=value, visible=bool(choices))


def _label(language: str, folder: Path) -> str:
    """Return the name of a job with what it is about."""
    job = jobs.settings(folder)
    about = [job.source] if isinstance(job, config.Export) else job.tuned if isinstance(job, config.Evaluation) else []
    when = i18n.moment(language, (folder / "run.yaml").stat().st_mtime)
    return " · ".join([folder.name, *filter(None, [", ".join(about)]), when])


def _view(name: str, workspace: Path) -> View | None:
    """Return the view of a run by its name; None where there is no such run (any more)."""
    try:
        return runs.look(runs.find(name, workspace))
    except InputError:
        return None


def _stop(name: str, workspace: Path) -> None:
    try:
        runs.stop(runs.find(name, workspace))
    except InputError:
        return  # it was deleted just now: what should stop is gone


def _empty(language: str, key: str) -> str:
    return f'<p class="tb-muted">{escape(tr(language, f"ui.{key}.empty"))}</p>'
