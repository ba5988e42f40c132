"""Runs: everything that was trained, evaluated and exported here, and what can be done with it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from app import jobs, show
from app.chart import spark, thin
from app.i18n import ABSENT, duration, number, size, tr
from app.live import open_tab
from app.page import QUIET, TELLING, Page, warn
from app.queue_panel import QueuePanel
from app.sweep_panel import panel
from core import queue, runs
from core.config import Run
from core.errors import InputError
from core.runs import View

KEY, ORDER = "runs", 60
MOST = 100
"""Runs listed at most, the newest."""
SPARK_POINTS = 48
SECONDS = 3.0
PICK = """element.addEventListener("click", (event) => {
  const row = event.target.closest("[data-run]");
  if (row) trigger("click", { run: row.dataset.run });
});"""
"""A click on a line tells whose line it was."""
TAB_OF = {"train": "train", "evaluation": "evaluate", "serving": "chat", "export": "export"}
"""Where a job of each kind is looked at."""


def build(page: Page, tab: gr.Tab) -> None:
    with gr.Column(elem_classes=["tb-runs"]):
        waiting = QueuePanel(page)
        table = gr.HTML(elem_id="tb-runs-table", js_on_load=PICK)
        first = gr.Button(variant="primary", visible=False, elem_id="tb-runs-first")
        page.say(first, value="ui.runs.first_button")
        title, bar = _bar(page)
        with gr.Row(visible=False, elem_classes=["tb-confirm"]) as confirm:
            question = gr.HTML(elem_id="tb-runs-question")
            yes = page.say(gr.Button(elem_id="tb-runs-yes", variant="stop", size="sm"), value="ui.runs.yes")
            no = page.say(gr.Button(elem_id="tb-runs-no", size="sm"), value="ui.runs.no")
        sweep = gr.HTML(elem_id="tb-runs-sweep", js_on_load=PICK, min_height=0)
    # asked: the run that the question is about; another line may be clicked before it is answered
    timer, chosen, told, asked = gr.Timer(SECONDS, active=False), gr.State(""), gr.State(_Told()), gr.State("")
    opened, stop, resume, enqueue, clone, delete = bar
    listing = _Listing(page, waiting)
    state = [page.language, chosen, told]
    outputs = [table, first, title, *bar, *waiting.outputs, sweep, chosen, told]
    again: dict[str, Any] = {"fn": listing.refresh, "inputs": state, "outputs": outputs, **QUIET}

    def selected(event: gr.SelectData) -> Any:
        return gr.Timer(active=page.tabs.children[event.index] is tab)

    page.tabs.select(selected, None, timer, **QUIET)
    tab.select(**again)
    page.language.change(**again)
    timer.tick(**again)
    table.click(listing.picked, None, chosen, **QUIET).then(**again)
    sweep.click(listing.open_picked, page.run, [page.run, page.tabs], **TELLING)
    waiting.listen(again)
    enqueue.click(listing.act("enqueue"), [chosen, page.language], None, **TELLING).then(**again)
    first.click(open_tab("train"), None, page.tabs, **QUIET)
    opened.click(listing.open, [chosen, page.run], [page.run, page.tabs], **TELLING)
    stop.click(listing.act("stop"), [chosen, page.language], None, **TELLING).then(**again)
    resume.click(listing.act("resume"), [chosen, page.language], None, **TELLING).then(**again)
    clone.click(listing.clone, [chosen, page.clone], page.clone, **TELLING)
    delete.click(listing.ask, [chosen, page.language], [confirm, question, asked], **QUIET)
    no.click(lambda: gr.update(visible=False), None, confirm, **QUIET)
    deleted = yes.click(listing.act("delete"), [asked, page.language], None, **TELLING)
    deleted.then(listing.gone, [asked, page.run], [confirm, page.run], **TELLING).then(**again)


def _bar(page: Page) -> tuple[gr.HTML, list[gr.Button]]:
    """Lay out what can be done with the chosen run."""
    with gr.Row(elem_classes=["tb-runs-bar"]):
        title = gr.HTML(elem_id="tb-runs-chosen")
        opened = page.say(gr.Button(elem_id="tb-runs-open", size="sm"), value="ui.runs.open")
        stop = page.say(gr.Button(elem_id="tb-runs-stop", size="sm", visible=False), value="ui.live.stop")
        resume = gr.Button(elem_id="tb-runs-resume", size="sm", visible=False)
        enqueue = page.say(gr.Button(elem_id="tb-runs-enqueue", size="sm", visible=False), value="ui.train.enqueue")
        clone = page.say(gr.Button(elem_id="tb-runs-clone", size="sm", visible=False), value="ui.live.clone")
        delete = gr.Button(elem_id="tb-runs-delete", size="sm", variant="stop", visible=False)
        page.say(delete, value="ui.runs.delete")
    return title, [opened, stop, resume, enqueue, clone, delete]


class _Told(NamedTuple):
    """What a browser was shown last; what is the same need not be sent again."""

    table: str = ""
    queue: tuple[Any, ...] = ()
    sweep: str = ""


class _Listing:
    """The table, and what its buttons do with the run that is chosen."""

    def __init__(self, page: Page, waiting: QueuePanel) -> None:
        self.page, self.waiting = page, waiting

    def refresh(self, language: str, chosen: str, before: _Told) -> list[Any]:
        """Return an update for each output, empty where nothing changed."""
        folders = runs.listed(self.page.workspace)[:MOST]
        names = [folder.name for folder in folders]
        name = chosen if chosen in names else next(iter(names), "")
        seen, waiting = self.waiting.look(language)
        now = _Told(_table(self.page, language, folders, name), seen, panel(self.page, language, name))
        title = f"<h2>{escape(name)}</h2>" if name else ""
        listing = [now.table, gr.update(visible=not names), title, *self._bar(language, name)]
        return [
            *(listing if now.table != before.table else [gr.skip()] * len(listing)),
            *(waiting if now.queue != before.queue else [gr.skip()] * len(waiting)),
            now.sweep if now.sweep != before.sweep else gr.skip(),
            name if name != chosen else gr.skip(),
            now if now != before else gr.skip(),
        ]

    def _bar(self, language: str, name: str) -> list[Any]:
        try:
            folder = runs.find(name, self.page.workspace)
        except InputError:
            return [gr.update(visible=False)] * 6
        with self.page.watch.view(folder) as view:
            trains, onward = view.state.job in ("", "train"), show.onward(view)
            return [
                gr.update(visible=True),
                gr.update(visible=view.active),
                gr.update(visible=bool(onward), value=tr(language, onward)),
                gr.update(visible=trains and view.status in {*runs.RESUMABLE, "new"}),
                gr.update(visible=trains),
                gr.update(visible=not view.active),
            ]

    def picked(self, event: gr.EventData) -> str:
        """Return the run whose line was clicked; the page's script tells its name."""
        return str(event._data.get("run", ""))[:200] if isinstance(event._data, dict) else ""

    def open_picked(self, before: str, event: gr.EventData) -> list[Any]:
        """Show the run of a sweep whose line was clicked."""
        return self.open(self.picked(event), before)

    def open(self, name: str, before: str) -> list[Any]:
        """Show a run where jobs of its kind are looked at."""
        try:
            kind = jobs.settings(runs.find(name, self.page.workspace)).kind
        except InputError:
            return [before, gr.skip()]
        return [name, gr.update(selected=TAB_OF[kind])]

    def clone(self, name: str, wish: tuple[str, int]) -> tuple[str, int]:
        return name, wish[1] + 1

    def act(self, what: str) -> Any:
        """Return the handler that stops, resumes, queues or deletes the chosen run."""
        actions = {"stop": runs.stop, "resume": runs.resume, "enqueue": self._enqueue, "delete": runs.delete}
        action = actions[what]

        def handle(name: str, language: str) -> None:
            try:
                action(runs.find(name, self.page.workspace))
            except InputError as error:
                warn(language, error)

        return handle

    def _enqueue(self, folder: Path) -> None:
        queue.add([folder], self.page.workspace)

    def ask(self, name: str, language: str) -> list[Any]:
        """Ask whether the run shall really go, and say what goes with it."""
        try:
            folder = runs.find(name, self.page.workspace)
        except InputError:
            return [gr.update(visible=False), "", ""]
        weight = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        text = tr(language, "ui.runs.really", run=folder.name, size=size(language, weight))
        return [gr.update(visible=True), f'<p role="alert">{escape(text)}</p>', folder.name]

    def gone(self, name: str, shown: str) -> list[Any]:
        """Fold the question away; forget a run that is no more."""
        left = (self.page.workspace / "runs" / name).exists()
        return [gr.update(visible=False), "" if shown == name and not left else shown]


def _table(page: Page, language: str, folders: list[Path], chosen: str) -> str:
    if not folders:
        title, text = tr(language, "ui.live.first_title"), tr(language, "ui.runs.first")
        return f'<div class="tb-welcome"><h2>{escape(title)}</h2><p>{escape(text)}</p></div>'
    heads = "".join(
        f"<th{' class=tb-number' if key in NUMBERS else ''}>{escape(tr(language, f'ui.runs.{key}'))}</th>"
        for key in COLUMNS
    )
    order = list(runs.waiting(page.workspace))
    rows = "".join(_row(page, language, folder, folder.name == chosen, order) for folder in folders)
    return (
        f'<div class="tb-table" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


COLUMNS = ("run", "state", "kind", "began", "time", "loss", "curve")
NUMBERS = ("time", "loss")


def _row(page: Page, language: str, folder: Path, chosen: bool, order: list[Path]) -> str:
    place = f" {number(language, order.index(folder) + 1)}" if folder in order else ""
    with page.watch.view(folder) as view:
        loss = show.last_loss(view)
        lone = thin(view.state.curves["smooth"], SPARK_POINTS)
        cells = [
            f'<td><button class="tb-link" data-run="{escape(view.name)}">{escape(view.name)}</button></td>',
            f"<td>{show.chip(language, view.status)}{_share(language, view) or place}</td>",
            f"<td>{escape(_kind(language, folder, view))}</td>",
            f"<td>{escape(show.when(language, view))}</td>",
            f'<td class="tb-number">{duration(language, show.seconds(view))}</td>',
            f'<td class="tb-number">{number(language, loss)}</td>',
            f"<td>{spark(tr(language, 'ui.runs.curve_told', run=view.name), lone)}</td>",
        ]
    return f'<tr{" aria-current=true" if chosen else ""} data-run="{escape(view.name)}">{"".join(cells)}</tr>'


def _share(language: str, view: View) -> str:
    if not (view.active and view.state.total):
        return ""
    return f" {number(language, int(100 * view.state.step / view.state.total))} %"


def _kind(language: str, folder: Path, view: View) -> str:
    """Return what a job does, a training by its stage; ABSENT for settings that this version can't read."""
    kind = view.state.job
    try:
        job = jobs.settings(folder)
    except (InputError, OSError):
        return tr(language, f"job.{kind}.label") if kind else ABSENT
    label = tr(language, f"job.{job.kind}.label")
    return f"{label} · {tr(language, f'choice.stage.{job.stage.kind}.label')}" if isinstance(job, Run) else label
