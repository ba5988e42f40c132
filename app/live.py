"""The live panel: what the shown run does now, by one timer that reads its folder and sends only what is new."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from app import jobs, show
from app.i18n import tr
from app.machine import Machine
from app.page import QUIET, TELLING, Page, warn
from app.samples import newest, samples
from core import config, runs
from core.errors import InputError
from core.recipes import recipe
from core.runs import View

BUSY, IDLE = 1.0, 5.0
"""Seconds between two looks while the shown run is active, and else."""

FOCUS = """const box = element.closest(".html-container") ?? element;
box.tabIndex = 0;
box.setAttribute("role", "log");
box.setAttribute("aria-live", "off");"""
"""The log scrolls by itself, so the keyboard must reach it; but nobody wants each line read out."""


class Seen(NamedTuple):
    """What a browser was shown last; what is the same need not be sent again."""

    run: str = ""
    language: str = ""
    offset: int = -1
    status: str = ""
    log: int = -1
    machine: str = ""
    sample: float = 0.0


class Live:
    """The panel, and the handlers of its buttons. `seen` is kept for each browser, all else in the run folder."""

    def __init__(self, page: Page) -> None:
        self.page, self.machine = page, Machine()
        with gr.Column(elem_classes=["tb-live"], elem_id="tb-live"):
            self.head = gr.HTML(elem_id="tb-live-head")
            self.first = page.say(
                gr.Button(variant="primary", visible=False, elem_id="tb-start-demo"), value="ui.live.start_demo"
            )
            with gr.Row(elem_classes=["tb-actions", "tb-run-actions"]):
                self.stop = gr.Button(visible=False, elem_id="tb-stop")
                self.resume = gr.Button(visible=False, elem_id="tb-resume")
                self.chat = page.say(gr.Button(visible=False, elem_id="tb-next-chat"), value="ui.live.chat")
                self.evaluate = page.say(gr.Button(visible=False, elem_id="tb-next-evaluate"), value="ui.live.evaluate")
                self.export = page.say(gr.Button(visible=False, elem_id="tb-next-export"), value="ui.live.export")
                self.clone = page.say(gr.Button(visible=False, elem_id="tb-clone"), value="ui.live.clone")
            self.charts = gr.HTML(elem_id="tb-charts")
            self.samples = gr.HTML(visible=False, elem_id="tb-samples")
            self.fold = page.say(gr.Accordion(open=True, elem_classes=["tb-log-fold"]), label="ui.live.log")
            with self.fold:
                self.log = gr.HTML(elem_id="tb-log", max_height=168, js_on_load=FOCUS)
            self.hardware = gr.HTML(elem_id="tb-machine")
        self.timer = gr.Timer(BUSY)
        self.seen = gr.State(Seen())
        self.outputs = [
            self.head, self.first, self.charts, self.stop, self.resume, self.chat, self.evaluate, self.export,
            self.clone, self.samples, self.fold, self.log, self.hardware, self.timer, self.seen,
        ]  # fmt: skip
        self._listen()

    def _listen(self) -> None:
        page = self.page
        shown = [page.run, page.language]
        state = [*shown, self.seen]
        self.timer.tick(self.tick, state, self.outputs, **QUIET)
        page.run.change(self.tick, state, self.outputs, **QUIET)
        page.language.change(self.tick, state, self.outputs, **QUIET)
        again: dict[str, Any] = {"fn": self.tick, "inputs": state, "outputs": self.outputs, **QUIET}
        self.stop.click(self._on(runs.stop), shown, None, **TELLING).then(**again)
        self.resume.click(self._on(runs.resume), shown, None, **TELLING).then(**again)
        self.first.click(self._demo, None, page.run, trigger_mode="once", **TELLING)
        self.clone.click(_wish, [page.run, page.clone], page.clone, **TELLING)
        for key, button in (("chat", self.chat), ("evaluate", self.evaluate), ("export", self.export)):
            button.click(_wish, [page.run, page.subject], page.subject, **TELLING)
            button.click(open_tab(key), None, page.tabs, **QUIET)

    # handlers

    def tick(self, run: str, language: str, seen: Seen) -> list[Any]:
        """Return an update for each of `outputs`, empty where the browser has it already."""
        try:
            folder = runs.find(run, self.page.workspace)
        except InputError:
            return self._nothing(language, seen)
        log, machine = show.log_size(folder), self.machine.told(language)
        with self.page.watch.view(folder) as view:
            now = Seen(run, language, view.offset, view.status, log, machine, newest(view))
            fresh = (run, language) != (seen.run, seen.language)
            moved = fresh or (now.offset, now.status) != (seen.offset, seen.status)
            told = show.log_tail(folder) if fresh or now.log != seen.log else None
            return [
                show.head(language, view) if moved or view.active else gr.skip(),
                gr.update(visible=False) if fresh else gr.skip(),
                gr.update(value=show.charts(language, view), visible=view.state.job in ("", "train"))
                if moved
                else gr.skip(),
                *(self._buttons(language, view) if fresh or now.status != seen.status else [gr.skip()] * 6),
                gr.update(value=samples(language, view), visible=bool(now.sample))
                if fresh or now.sample != seen.sample
                else gr.skip(),
                gr.update(visible=True) if fresh else gr.skip(),
                gr.skip() if told is None else _log(language, told),
                machine if fresh or machine != seen.machine else gr.skip(),
                gr.Timer(BUSY if view.active else IDLE) if fresh or now.status != seen.status else gr.skip(),
                now if now != seen else gr.skip(),
            ]

    def _buttons(self, language: str, view: View) -> list[Any]:
        trains = view.state.job in ("", "train")
        saved = trains and any(event.get("what") in ("adapter", "model") for event in view.state.saved)
        run, onward = jobs.trained(view.folder), show.onward(view)
        answers = saved and (run is None or run.stage.answers)
        label = tr(language, "ui.live.stop_now" if view.status == "stopping" else "ui.live.stop")
        return [
            gr.update(visible=view.active, value=label),
            gr.update(visible=bool(onward), value=tr(language, onward), variant="primary"),
            *[gr.update(visible=answers and not view.active)] * 2,
            gr.update(visible=saved and not view.active),
            gr.update(visible=trains),
        ]

    def _nothing(self, language: str, seen: Seen) -> list[Any]:
        """Say what to do where no run is shown."""
        now = Seen("", language, -1, "", -1, self.machine.told(language))
        if now == seen:
            return [gr.skip()] * len(self.outputs)
        if (now.run, now.language, now.status) == (seen.run, seen.language, seen.status):
            return [*[gr.skip()] * 12, now.machine, gr.skip(), now]
        which = "choose" if runs.listed(self.page.workspace) else "first"
        title, text = escape(tr(language, f"ui.live.{which}_title")), escape(tr(language, f"ui.live.{which}"))
        welcome = f'<div class="tb-welcome"><h2>{title}</h2><p>{text}</p></div>'
        hidden = gr.update(visible=False)
        return [
            welcome, gr.update(visible=which == "first"), gr.update(value="", visible=False), *[hidden] * 8,
            gr.skip(), now.machine, gr.Timer(IDLE), now,
        ]  # fmt: skip

    def _on(self, action: Callable[[Any], None]) -> Callable[..., None]:
        """Return the handler of a button that does something with the shown run."""

        def act(run: str, language: str) -> None:
            try:
                action(runs.find(run, self.page.workspace))
            except InputError as error:
                warn(language, error)

        return act

    def _demo(self) -> str:
        return jobs.start(config.resolve(recipe("demo").layer), self.page.workspace).name


def open_tab(key: str) -> Callable[[], Any]:
    """Return the handler that turns to a tab."""
    return lambda: gr.update(selected=key)


def _wish(run: str, before: tuple[str, int]) -> tuple[str, int]:
    """Return the wish that something be done with a run; the number tells it from the same wish before."""
    return run, before[1] + 1


def _log(language: str, text: str) -> str:
    return f'<pre class="tb-lines">{escape(text or tr(language, "ui.live.log_empty"))}</pre>'
