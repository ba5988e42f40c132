"""Data: rows, what the model gets of them, and what may be wrong with them, before anything is trained."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from app import dataview
from app.desk import ask
from app.i18n import number, tr
from app.page import QUIET, TELLING, Page
from app.pickers import offers
from core.data.add import add
from core.errors import InputError
from core.schema import variants
from core.sections import DEMO_DATA, DEMO_MODEL
from core.workspace import jailed

KEY, ORDER = "data", 5
FOLDER = "data"
"""Data folder of the workspace to which dropped files go."""
VIEWS = ("rows", "tokens", "lengths", "report", "inspect")
TURNED = ("rows", "tokens")
"""Views of which there are several pages."""
FIELDS = ("prompt", "query", "response", "messages", "system", "chosen", "rejected", "kto_tag")
"""Columns that can be named on the board; the file dataset_info.json knows more."""
ROWS = 10
OPEN = """element.addEventListener("click", (event) => {
  const line = event.target.closest("[data-line]");
  if (line) trigger("click", { line: line.dataset.line });
});"""
"""A click on a line number tells which."""


def build(page: Page) -> None:
    tab_index = len(page.tabs.children) - 1
    with gr.Row(elem_classes=["tb-workbench"]):
        with gr.Column(elem_classes=["tb-form"], elem_id="tb-data-form"):
            chosen = _chooser(page)
            added = _adder(page)
        with gr.Column(elem_classes=["tb-live"]):
            view = gr.Radio(_views("en"), value="rows", show_label=False, container=False, elem_id="tb-data-view")
            query = page.say(gr.Textbox(max_lines=1, elem_id="tb-data-query"), label="ui.data.query")
            shown = gr.HTML(elem_id="tb-data-shown", js_on_load=OPEN)
            with gr.Row(elem_classes=["tb-pager"], elem_id="tb-data-pager") as pager:
                back = page.say(gr.Button(size="sm", elem_id="tb-data-back"), value="ui.evaluate.back")
                onward = page.say(gr.Button(size="sm", elem_id="tb-data-onward"), value="ui.evaluate.onward")
    # lines behind which the pages up to this one begin; where the next begins, or None
    trail, ahead = gr.State([0]), gr.State(None)
    handlers = _Handlers(page)
    inputs = [page.language, view, query, trail, *chosen]
    outputs = [shown, back, onward, ahead]
    show: dict[str, Any] = {"fn": handlers.show, "inputs": inputs, "outputs": outputs, "trigger_mode": "always_last",
                            "concurrency_limit": 4, **TELLING}  # fmt: skip
    begin: dict[str, Any] = {"fn": lambda: [0], "inputs": None, "outputs": trail, **QUIET}
    folder, name, *rest = chosen
    folder.change(handlers.sets, [folder, name], name, **QUIET)
    turns = [query, pager]
    view.change(
        lambda view: [gr.update(visible=view == "rows"), gr.update(visible=view in TURNED)], view, turns, **QUIET
    )
    for event in (name.change, view.input, query.submit, *(field.change for field in rest)):
        event(**begin).then(**show)
    page.language.change(handlers.names, page.language, view, **QUIET).then(**show)
    back.click(lambda trail: trail[:-1] or [0], trail, trail, **QUIET).then(**show)
    onward.click(lambda trail, ahead: [*trail, ahead] if ahead else trail, [trail, ahead], trail, **QUIET).then(**show)
    opened = shown.click(handlers.open, None, [trail, view, query], **QUIET)
    opened.then(**show)
    file, fields, add_button, told, train = added
    file.change(handlers.detect, [file, page.language], [*fields, add_button, told], **TELLING)
    add_button.click(handlers.add, [file, page.language, *fields], [folder, name, file, told], **TELLING)
    train.click(lambda folder, name, wish: (folder, name, wish[2] + 1), [folder, name, page.data], page.data, **TELLING)
    page.tabs.select(handlers.arrive(tab_index), [folder, name], [folder, name], **QUIET).then(**show)


def _chooser(page: Page) -> list[Any]:
    """Lay out which set is looked at, and with whose eyes."""
    folders, names = (offers(pick, page.workspace, page.allowed, DEMO_DATA) for pick in ("data", "set"))
    wide: dict[str, Any] = {"allow_custom_value": True, "elem_classes": ["tb-wide"]}
    with page.say(gr.Accordion(elem_classes=["tb-card"]), label="ui.data.chosen_card"):
        folder = gr.Dropdown(folders, value=DEMO_DATA, elem_id="tb-data-folder", **wide)
        name = gr.Dropdown(names, value=next(iter(names), None), elem_id="tb-data-set", **wide)
        models = offers("model", page.workspace, page.allowed)
        model = gr.Dropdown(models, value=DEMO_MODEL, elem_id="tb-data-model", **wide)
        template = gr.Dropdown(offers("template", page.workspace), value="auto", elem_id="tb-data-template")
        cutoff = gr.Number(512, step=1, elem_id="tb-data-cutoff")
        held = gr.Dropdown(["", *names], value="", elem_id="tb-data-held", **wide)
    page.say(folder, label="field.data.folder.label", info="field.data.folder.help")
    page.say(name, label="ui.data.set")
    page.say(model, label="field.model.path.label", info="ui.data.model_help")
    page.say(template, label="field.data.template.label")
    page.say(cutoff, label="field.data.cutoff.label")
    page.say(held, label="field.data.eval.label", info="ui.data.held_help")
    return [folder, name, model, template, cutoff, held]


def _adder(page: Page) -> tuple[gr.File, list[Any], gr.Button, gr.HTML, gr.Button]:
    """Lay out where a file is dropped, what it seems to be, and the button that makes it a set."""
    train = page.say(gr.Button(elem_id="tb-data-train"), value="ui.data.train")
    kinds = [".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz"]
    with page.say(gr.Accordion(elem_classes=["tb-card"]), label="ui.data.add_card"):
        file = gr.File(file_types=kinds, type="filepath", elem_id="tb-data-file", elem_classes=["tb-wide"], height=96)
        title = gr.Textbox(max_lines=1, visible=False, elem_id="tb-data-name", elem_classes=["tb-wide"])
        format_ = gr.Dropdown(list(variants("core.formats")), visible=False, elem_id="tb-data-format",
                              elem_classes=["tb-wide"])  # fmt: skip
        columns = [gr.Dropdown([], visible=False, allow_custom_value=True, elem_id=f"tb-data-{key}") for key in FIELDS]
    button = page.say(gr.Button(visible=False, variant="primary", elem_id="tb-data-add"), value="ui.data.add")
    told = gr.HTML(elem_id="tb-data-told")
    page.say(file, label="ui.data.drop")
    page.say(title, label="ui.data.name")
    page.say(format_, label="ui.data.format", info="ui.data.format_help")
    for key, column in zip(FIELDS, columns, strict=True):
        page.say(column, label=f"ui.data.field.{key}")
    return file, [title, format_, *columns], button, told, train


class _Handlers:
    """What happens when something is chosen, dropped or pressed."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def names(self, language: str) -> Any:
        return gr.update(choices=_views(language))

    def arrive(self, tab_index: int) -> Any:
        """Return the handler that offers what the workspace has by now."""

        def handle(folder: str, name: str, event: gr.SelectData) -> list[Any]:
            if event.index != tab_index:
                return [gr.skip(), gr.skip()]
            return [gr.update(choices=offers("data", self.page.workspace, self.page.allowed)), self.sets(folder, name)]

        return handle

    def sets(self, folder: str, name: str) -> Any:
        found = offers("set", self.page.workspace, self.page.allowed, folder or "")
        return gr.update(choices=found, value=name if name in found else next(iter(found), None))

    def open(self, event: gr.EventData) -> list[Any]:
        """Show the row of a line number that was clicked."""
        line = str(event._data.get("line", "")) if isinstance(event._data, dict) else ""
        return [[int(line) - 1], "rows", ""] if line.isdigit() else [gr.skip()] * 3

    def show(self, language: str, view: str, query: str, trail: list[int], *chosen: Any) -> Iterator[list[Any]]:
        """Yield the view of a set; while a long one is made, how far it is."""
        try:
            yield from self._show(language, view, str(query or "")[:200], [int(at) for at in trail or [0]], *chosen)
        except InputError as error:
            yield [dataview.problem(language, error.code, error.params), *_pager(trail, None), None]

    def _show(self, language: str, view: str, query: str, trail: list[int], folder: Any, name: Any, model: Any,
              template: Any, cutoff: Any, held: Any) -> Iterator[list[Any]]:  # fmt: skip
        view = view if view in VIEWS else "rows"
        if not name:
            yield [f"<p>{tr(language, 'ui.data.empty')}</p>", *_pager([0], None), None]
            return
        place = jailed(str(folder or ""), self.page.workspace, self.page.allowed, "data.folder")
        data = {"folder": str(place), "train": [str(name)], "template": str(template), "eval": str(held or ""),
                "cutoff": int(cutoff) if isinstance(cutoff, int | float) and cutoff >= 8 else 512}  # fmt: skip
        more: dict[str, Any] = {"after": trail[-1]}
        if view == "rows":
            more |= {"count": ROWS, "query": query}
        if view in ("tokens", "lengths"):
            path = jailed(str(model), self.page.workspace, self.page.allowed, "model.path")
            more |= {"model": {"path": str(path)}, "count": 1}
        what = {"rows": "page", "tokens": "render"}.get(view, view)
        for done in _asking(lambda told: ask(what, self.page.workspace, data, advance=told, **more)):
            if isinstance(done, int):
                loading = not done and view in ("tokens", "lengths")
                said = tr(language, "message.phase.load_tokenizer" if loading else "ui.data.reading",
                          count=number(language, done))  # fmt: skip
                yield [f'<p class="tb-muted" role="status">{said}</p>', *[gr.skip()] * 3]
            else:
                ahead = done["next"] if view == "rows" else done["rows"][0]["line"] if view == "tokens" else None
                yield [_drawn(language, view, done), *_pager(trail, ahead), ahead]

    def detect(self, file: str | None, language: str) -> list[Any]:
        """Look at a dropped file and fill in what it seems to be."""
        hidden = [gr.update(visible=False)] * (3 + len(FIELDS))
        if not file:
            return [*hidden, ""]
        path = Path(file)
        try:
            found = ask("page", self.page.workspace, {"folder": str(path.parent), "train": [path.name]}, count=5)
        except InputError as error:
            return [*hidden, dataview.problem(language, error.code, error.params)]
        entry = found["entry"]
        known = variants("core.formats")[entry["formatting"]].model_fields
        columns = list(dict.fromkeys(name for row in found["rows"] for name in row.get("cells", {})))
        updates = []
        for key in FIELDS:
            usual = known[key].default if key in known else None
            value = entry.get("columns", {}).get(key, usual)
            updates.append(gr.update(visible=key in known and (value in columns or key in ("prompt", "response")),
                                     choices=columns, value=value))  # fmt: skip
        title = re.sub(r"[^\w .-]", "_", path.name.partition(".")[0])
        preview = f"<p>{tr(language, 'ui.data.detected')}</p>" + dataview.table(language, found)
        return [gr.update(visible=True, value=title), gr.update(visible=True, value=entry["formatting"]), *updates,
                gr.update(visible=True), preview]  # fmt: skip

    def add(self, file: str | None, language: str, name: str, format_: str, *columns: Any) -> list[Any]:
        """Make the dropped file a set, and show it."""
        nothing = [gr.skip()] * 3
        if not file:
            return [*nothing, dataview.problem(language, "path.missing", {"path": ""})]
        known = variants("core.formats").get(format_)
        fields = known.model_fields if known else {}
        given = {key: str(value) for key, value in zip(FIELDS, columns, strict=True)
                 if value and key in fields and value != fields[key].default}  # fmt: skip
        entry = {"formatting": format_, "columns": given}
        if {"chosen", "rejected"} <= {key for key, value in zip(FIELDS, columns, strict=True) if value}:
            entry |= {"ranking": format_ in ("alpaca", "openai", "sharegpt") and "ranking" in self._guess(file)}
        place = self.page.workspace / FOLDER
        try:
            made = add(Path(file), place, str(name or "").strip(), entry)
        except InputError as error:
            return [*nothing, dataview.problem(language, error.code, error.params)]
        folders = offers("data", self.page.workspace, self.page.allowed)
        sets = offers("set", self.page.workspace, self.page.allowed, FOLDER)
        said = tr(language, "ui.cli.data.added", name=made["name"], folder=FOLDER)
        return [gr.update(choices=folders, value=FOLDER), gr.update(choices=sets, value=made["name"]),
                gr.update(value=None), f'<p role="status">{dataview.escape(said)}</p>']  # fmt: skip

    def _guess(self, file: str) -> dict[str, Any]:
        path = Path(file)
        return ask("page", self.page.workspace, {"folder": str(path.parent), "train": [path.name]}, count=1)["entry"]


def _views(language: str) -> list[tuple[str, str]]:
    return [(tr(language, f"ui.data.view_{key}"), key) for key in VIEWS]


def _drawn(language: str, view: str, found: dict[str, Any]) -> str:
    """Return a view as HTML."""
    if view == "tokens":
        return dataview.tokens(language, found["rows"][0])
    draw = {"rows": dataview.table, "lengths": dataview.lengths, "report": dataview.report,
            "inspect": dataview.inspection}[view]  # fmt: skip
    return draw(language, found)


def _pager(trail: Any, ahead: int | None) -> list[Any]:
    return [gr.update(interactive=len(trail or [0]) > 1), gr.update(interactive=ahead is not None)]


def _asking(question: Callable[[Callable[[int], None]], dict[str, Any]]) -> Iterator[int | dict[str, Any]]:
    """Ask in a thread; yield how many rows are done from time to time, the answer last."""
    told, found, wrong = [0], [], []

    def work() -> None:
        try:
            found.append(question(lambda done: told.__setitem__(0, done)))
        except InputError as error:
            wrong.append(error)

    thread, said = threading.Thread(target=work, daemon=True), -1
    thread.start()
    begun = time.monotonic()
    while thread.is_alive():
        thread.join(0.1)
        if told[0] != said and thread.is_alive() and time.monotonic() - begun > 1:
            said = told[0]
            yield said
    if wrong:
        raise wrong[0]
    yield found[0]
