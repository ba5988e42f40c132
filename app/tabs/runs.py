"""Runs: everything that was trained, evaluated and exported here, and what can be done with it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app import jobs, show
from app.chart import spark, thin
from app.i18n import ABSENT, duration, number, size, tr
from app.live import open_tab
from app.page import QUIET, TELLING, Page
from core import runs
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


def build(page: Page) -> None:
    tab_index = len(page.tabs.children) - 1
    with gr.Column(elem_classes=["tb-runs"]):
        table = gr.HTML(elem_id="tb-runs-table", js_on_load=PICK)
        first = gr.Button(variant="primary", visible=False, elem_id="tb-runs-first")
        page.say(first, value="ui.runs.first_button")
        with gr.Row(elem_classes=["tb-runs-bar"]):
            title = gr.HTML(elem_id="tb-runs-chosen")
            opened = page.say(gr.Button(elem_id="tb-runs-open", size="sm"), value="ui.runs.open")
            stop = page.say(gr.Button(elem_id="tb-runs-stop", size="sm", visible=False), value="ui.live.stop")
            resume = page.say(gr.Button(elem_id="tb-runs-resume", size="sm", visible=False), value="ui.live.resume")
            clone = page.say(gr.Button(elem_id="tb-runs-clone", size="sm", visible=False), value="ui.live.clone")
            delete = gr.Button(elem_id="tb-runs-delete", size="sm", variant="stop", visible=False)
            page.say(delete, value="ui.runs.delete")
        with gr.Row(visible=False, elem_classes=["tb-confirm"]) as confirm:
            question = gr.HTML(elem_id="tb-runs-question")
            yes = page.say(gr.Button(elem_id="tb-runs-yes", variant="stop", size="sm"), value="ui.runs.yes")
            no = page.say(gr.Button(elem_id="tb-runs-no", size="sm"), value="ui.runs.no")
    # asked: the run that the question is about; another line may be clicked before it is answered
    timer, chosen, told, asked = gr.Timer(SECONDS, active=False), gr.State(""), gr.State(""), gr.State("")
    bar = [opened, stop, resume, clone, delete]
    listing = _Listing(page)
    state, outputs = [page.language, chosen, told], [table, first, title, *bar, chosen, told]
    again: dict[str, Any] = {"fn": listing.refresh, "inputs": state, "outputs": outputs, **QUIET}

    def selected(event: gr.SelectData) -> Any:
        return gr.Timer(active=event.index == tab_index)

    page.tabs.select(selected, None, timer, **QUIET).then(**again)
    page.language.change(**again)
    timer.tick(**again)
    table.click(listing.picked, None, chosen, **QUIET).then(**again)
    first.click(open_tab("train"), None, page.tabs, **QUIET)
    opened.click(listing.open, [chosen, page.run], [page.run, page.tabs], **TELLING)
    stop.click(listing.act("stop"), [chosen, page.language], None, **QUIET).then(**again)
    resume.click(listing.act("resume"), [chosen, page.language], None, **QUIET).then(**again)
    clone.click(listing.clone, [chosen, page.clone], page.clone, **TELLING)
    delete.click(listing.ask, [chosen, page.language], [confirm, question, asked], **QUIET)
    no.click(lambda: gr.update(visible=False), None, confirm, **QUIET)
    deleted = yes.click(listing.act("delete"), [asked, page.language], None, **QUIET)
    deleted.then(listing.gone, [asked, page.run], [confirm, page.run], **TELLING).then(**again)


class _Listing:
    """The table, and what its buttons do with the run that is chosen."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def refresh(self, language: str, chosen: str, before: str) -> list[Any]:
        """Return an update for each output, empty where nothing changed."""
        folders = runs.listed(self.page.workspace)[:MOST]
        names = [folder.name for folder in folders]
        name = chosen if chosen in names else next(iter(names), "")
        html = _table(self.page, language, folders, name)
        if html == before:
            return [gr.skip()] * 10
        title = f"<h2>{escape(name)}</h2>" if name else ""
        return [html, gr.update(visible=not names), title, *self._bar(name), name, html]

    def _bar(self, name: str) -> list[Any]:
        try:
            folder = runs.find(name, self.page.workspace)
        except InputError:
            return [gr.update(visible=False)] * 5
        with self.page.watch.view(folder) as view:
            trains = view.state.job in ("", "train")
            return [
                gr.update(visible=True),
                gr.update(visible=view.active),
                gr.update(visible=trains and view.status in runs.RESUMABLE),
                gr.update(visible=trains),
                gr.update(visible=not view.active),
            ]

    def picked(self, event: gr.EventData) -> str:
        """Return the run whose line was clicked; the page's script tells its name."""
        return str(event._data.get("run", ""))[:200] if isinstance(event._data, dict) else ""

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
        """Return the handler that stops, resumes or deletes the chosen run."""
        action = {"stop": runs.stop, "resume": runs.resume, "delete": runs.delete}[what]

        def handle(name: str, language: str) -> None:
            try:
                action(runs.find(name, self.page.workspace))
            except InputError as error:
                gr.Warning(escape(show.message(language, error.code, error.params)))

        return handle

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
    rows = "".join(_row(page, language, folder, folder.name == chosen) for folder in folders)
    return (
        f'<div class="tb-table" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


COLUMNS = ("run", "state", "kind", "began", "time", "loss", "curve")
NUMBERS = ("time", "loss")


def _row(page: Page, language: str, folder: Path, chosen: bool) -> str:
    with page.watch.view(folder) as view:
        kind = _kind(folder, view)
        loss = show.last_loss(view)
        lone = thin(view.state.curves["smooth"], SPARK_POINTS)
        cells = [
            f'<td><button class="tb-link" data-run="{escape(view.name)}">{escape(view.name)}</button></td>',
            f"<td>{show.chip(language, view.status)}{_share(language, view)}</td>",
            f"<td>{escape(tr(language, f'job.{kind}.label')) if kind else ABSENT}</td>",
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


def _kind(folder: Path, view: View) -> str:
    """Return the kind of a job; "" for settings that this version can't read."""
    if view.state.job:
        return view.state.job
    try:
        return jobs.settings(folder).kind
    except (InputError, OSError):
        return ""
