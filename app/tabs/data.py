"""Data: rows, what the model gets of them, and what may be wrong with them, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import dataview
from app.desk import Questions, ask
from app.dropped import FOLDER, Dropped
from app.fields import make, plain
from app.i18n import number, tr
from app.page import QUIET, TELLING, Page
from app.pickers import offers
from core import config
from core.errors import InputError
from core.schema import Setting
from core.sections import DEMO_DATA, DEMO_MODEL
from core.workspace import HUB_ID, jailed

KEY, ORDER = "data", 5
VIEWS = ("rows", "tokens", "packs", "lengths", "report", "inspect")
TURNED = ("rows", "tokens", "packs")
"""Views of which there are several pages."""
EYES = ("tokens", "packs", "lengths")
"""Views that need a tokenizer."""
SEEN = (
    "data.template", "data.cutoff", "data.thinking", "data.truncation", "stage.sft.train_on_prompt",
    "stage.sft.mask_history",
)  # fmt: skip
LENS = [setting for setting in config.known_settings(config.Run) if setting.path in SEEN]
"""Settings of a run that change what the model gets of a row."""
ROWS = 10
OPEN = """element.addEventListener("click", (event) => {
  const line = event.target.closest("[data-line]");
  if (line) trigger("click", { line: line.dataset.line });
});"""
"""A click on a line number tells which."""


def build(page: Page, tab: gr.Tab) -> None:
    with gr.Row(elem_classes=["tb-workbench"]):
        with gr.Column(elem_classes=["tb-form"], elem_id="tb-data-form"):
            chosen = _chooser(page)
            train = page.say(gr.Button(elem_id="tb-data-train"), value="ui.data.train")
            dropped = Dropped(page)
        with gr.Column(elem_classes=["tb-live"]):
            view = _View(page)
    handlers = _Handlers(page, dropped)
    show = view.listen(page, handlers, chosen)
    folder, name, _, held, *_ = chosen
    folder.change(handlers.sets, [folder, name, held], [name, held], **QUIET)
    dropped.add.click(
        handlers.add, [dropped.file, page.language, *dropped.fields], [folder, name, dropped.file, dropped.told],
        **TELLING,
    )  # fmt: skip
    train.click(handlers.wish, [page.language, dropped.file, page.data, *chosen], [page.data, dropped.told], **TELLING)
    tab.select(handlers.arrive, [folder, name, held], [folder, name, held], **QUIET).then(**show)


class _View:
    """The right side: one of VIEWS, and the buttons that turn its pages."""

    def __init__(self, page: Page) -> None:
        self.view = gr.Radio(_views("en"), value="rows", show_label=False, container=False, elem_id="tb-data-view")
        self.query = page.say(gr.Textbox(max_lines=1, elem_id="tb-data-query"), label="ui.data.query")
        self.shown = gr.HTML(elem_id="tb-data-shown", js_on_load=OPEN)
        with gr.Row(elem_classes=["tb-pager"], elem_id="tb-data-pager") as self.pager:
            self.goto = page.say(gr.Number(1, precision=0, minimum=1, elem_id="tb-data-goto"), label="ui.data.goto")
            self.back = page.say(gr.Button(size="sm", elem_id="tb-data-back"), value="ui.evaluate.back")
            self.onward = page.say(gr.Button(size="sm", elem_id="tb-data-onward"), value="ui.evaluate.onward")
        # where the pages up to this one begin: lines, of packs their numbers; where the next begins, or None
        self.trail, self.ahead = gr.State([0]), gr.State(None)

    def listen(self, page: Page, handlers: _Handlers, chosen: list[Any]) -> dict[str, Any]:
        """Show what is chosen whenever it changes; return the event that shows it, for others to end with."""
        view, trail, ahead = self.view, self.trail, self.ahead
        show: dict[str, Any] = {
            "fn": handlers.show, "inputs": [page.language, view, self.query, trail, *chosen],
            "outputs": [self.shown, self.back, self.onward, ahead], "trigger_mode": "always_last",
            "concurrency_limit": 4, **TELLING,
        }  # fmt: skip
        turns = {"outputs": trail, **QUIET}
        _, name, *rest = chosen
        view.change(_turned, view, [self.query, self.pager], **QUIET)
        for event in (name.change, view.input, self.query.submit, *(field.change for field in rest)):
            event(handlers.begin, None, **turns).then(**show)
        page.language.change(handlers.names, page.language, view, **QUIET).then(**show)
        self.back.click(lambda trail: trail[:-1] or [0], trail, **turns).then(**show)
        self.onward.click(lambda trail, at: [*trail, at] if at else trail, [trail, ahead], **turns).then(**show)
        self.goto.submit(lambda n: [0, n - 1] if n and n > 1 else [0], self.goto, **turns).then(**show)
        self.shown.click(handlers.open, None, [trail, view, self.query], **QUIET).then(**show)
        return show


def _chooser(page: Page) -> list[Any]:
    """Lay out which set is looked at, and with whose eyes: the components of CHOSEN, and of each setting of LENS."""
    folders, names = (offers(pick, page.workspace, page.allowed, DEMO_DATA) for pick in ("data", "set"))
    wide: dict[str, Any] = {"allow_custom_value": True, "elem_classes": ["tb-wide"]}
    with page.say(gr.Accordion(elem_classes=["tb-card"]), label="ui.data.chosen_card"):
        folder = gr.Dropdown(folders, value=DEMO_DATA, elem_id="tb-data-folder", **wide)
        name = gr.Dropdown(names, value=next(iter(names), None), elem_id="tb-data-set", **wide)
        models = offers("model", page.workspace, page.allowed)
        model = gr.Dropdown(models, value=DEMO_MODEL, elem_id="tb-data-model", **wide)
        held = gr.Dropdown(["", *names], value="", elem_id="tb-data-held", **wide)
        with page.say(gr.Accordion(open=False, elem_classes=["tb-expert"]), label="ui.data.lens"):
            lens = [make(setting, KEY) for setting in LENS]
    page.say(folder, label="field.data.folder.label", info="field.data.folder.help")
    page.say(name, label="ui.data.set")
    page.say(model, label="field.model.path.label", info="ui.data.model_help")
    page.say(held, label="field.data.eval.label", info="ui.data.held_help")
    for setting, component in zip(LENS, lens, strict=True):
        page.say(component, label=f"field.{setting.path}.label", info=f"field.{setting.path}.help")
    return [folder, name, model, held, *lens]


class _Handlers:
    """What happens when something is chosen, dropped or pressed."""

    def __init__(self, page: Page, dropped: Dropped) -> None:
        self.page, self.dropped, self.questions = page, dropped, Questions()

    def names(self, language: str) -> Any:
        return gr.update(choices=_views(language))

    def arrive(self, folder: str, name: str, held: str) -> list[Any]:
        """Offer what the workspace has by now."""
        folders = offers("data", self.page.workspace, self.page.allowed)
        return [gr.update(choices=folders), *self.sets(folder, name, held)]

    def sets(self, folder: str, name: str, held: str) -> list[Any]:
        """Offer the sets of a folder, to look at and to compare with."""
        found = offers("set", self.page.workspace, self.page.allowed, folder or "")
        chosen = gr.update(choices=found, value=name if name in found else next(iter(found), None))
        return [chosen, gr.update(choices=["", *found], value=held if held in found else "")]

    def open(self, event: gr.EventData) -> list[Any]:
        """Show the row of a line number that was clicked."""
        line = str(event._data.get("line", "")) if isinstance(event._data, dict) else ""
        return [[0, int(line) - 1], "rows", ""] if line.isdigit() else [gr.skip()] * 3

    def begin(self, request: gr.Request) -> list[int]:
        """Go to the first page; what was asked before is of no use any more."""
        self.questions.end(str(request.session_hash))
        return [0]

    def show(
        self, request: gr.Request, language: str, view: str, query: str, trail: list[int], *chosen: Any
    ) -> Iterator[list[Any]]:
        """Yield the view of a set; while a long one is made, how far it is."""
        browser, at = str(request.session_hash), [int(place) for place in trail or [0]]
        try:
            yield from self._show(browser, language, view, str(query or "")[:200], at, *chosen)
        except InputError as error:
            first = error.problems[0]
            yield [dataview.problem(language, first.code, first.params), *_pager(trail, None), None]

    def _show(self, browser: str, language: str, view: str, query: str, trail: list[int], folder: Any, name: Any,
              model: Any, held: Any, *lens: Any) -> Iterator[list[Any]]:  # fmt: skip
        view = view if view in VIEWS else "rows"
        place = jailed(str(folder or ""), self.page.workspace, self.page.allowed, "data.folder")
        if not name:
            yield [f"<p>{tr(language, 'ui.data.empty')}</p>", *_pager([0], None), None]
            return
        page, run = self.page, config.run(_layer(lens))
        asked = run.data.model_dump() | {"folder": str(place), "train": [str(name)], "eval": str(held or "")}
        more: dict[str, Any] = {"after": trail[-1]}
        if view == "rows":
            more |= {"count": ROWS, "query": query}
        if view in EYES:
            path = str(model) if HUB_ID.fullmatch(str(model)) else ""
            path = path or str(jailed(str(model), page.workspace, page.allowed, "model.path"))
            more |= {"model": {"path": path}, "count": 1, **run.stage.masks()}
        if view == "packs":
            more |= {"after": 0, "nth": trail[-1] + 1}
        what = {"rows": "page", "tokens": "render"}.get(view, view)
        for done in self.questions.ask(browser, partial(ask, what, page.workspace, asked, **more)):
            if isinstance(done, int):
                loading = not done and view in EYES
                said = tr(language, "message.phase.load_tokenizer" if loading else "ui.data.reading",
                          count=number(language, done))  # fmt: skip
                yield [f'<p class="tb-muted" role="status">{said}</p>', *[gr.skip()] * 3]
            else:
                ahead = _ahead(view, done)
                yield [_drawn(language, view, done), *_pager(trail, ahead), ahead]

    def add(self, file: str | None, language: str, *described: Any) -> list[Any]:
        """Make the dropped file a set, and show it."""
        try:
            name, said = self.dropped.make(file, language, *described)
        except InputError as error:
            return [*[gr.skip()] * 3, dataview.problem(language, error.code, error.params)]
        folders = offers("data", self.page.workspace, self.page.allowed)
        sets = offers("set", self.page.workspace, self.page.allowed, FOLDER)
        return [gr.update(choices=folders, value=FOLDER), gr.update(choices=sets, value=name),
                gr.update(value=None), f'<p role="status">{dataview.escape(said)}</p>']  # fmt: skip

    def wish(self, language: str, file: str | None, before: tuple[dict, int], folder: str, name: str, _model: Any,
             _held: Any, *lens: Any) -> list[Any]:  # fmt: skip
        """Return what the Train form shall take: the set, and the settings with which it was looked at."""
        if file:
            return [gr.skip(), dataview.problem(language, "data.not_added", {"file": Path(file).name})]
        changed = [s for s, value in zip(LENS, lens, strict=True) if plain(s, value) != s.default]
        layer = _layer(lens, only=changed) if changed else {}
        data = {**layer.get("data", {}), "folder": folder, "train": [name], "eval": []}
        return [({**layer, "data": data}, before[1] + 1), gr.skip()]


def _turned(view: str) -> list[Any]:
    """Show what a view can be searched and turned with."""
    return [gr.update(visible=view == "rows"), gr.update(visible=view in TURNED)]


def _layer(values: Sequence[Any], only: Sequence[Setting] = LENS) -> dict[str, Any]:
    """Return the values of the settings of LENS as a layer of a run; a field that is empty has its default."""
    given = {s.key: plain(s, value) for s, value in zip(LENS, values, strict=True) if s in only and value is not None}
    return config.nest({"kind": "train", "stage.kind": "sft", **given})


def _ahead(view: str, found: dict[str, Any]) -> int | None:
    """Return where the next page begins."""
    if view in ("rows", "tokens"):
        return found["next"]
    return found["pack"] if view == "packs" and found["pack"] < found["packs"] else None


def _views(language: str) -> list[tuple[str, str]]:
    return [(tr(language, f"ui.data.view_{key}"), key) for key in VIEWS]


def _drawn(language: str, view: str, found: dict[str, Any]) -> str:
    """Return a view as HTML."""
    if view == "tokens":
        return dataview.tokens(language, found["rows"][0])
    draw = {"rows": dataview.table, "packs": dataview.packs, "lengths": dataview.lengths, "report": dataview.report,
            "inspect": dataview.inspection}[view]  # fmt: skip
    return draw(language, found)


def _pager(trail: Any, ahead: int | None) -> list[Any]:
    return [gr.update(interactive=len(trail or [0]) > 1), gr.update(interactive=ahead is not None)]
