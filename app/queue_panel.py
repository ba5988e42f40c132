"""The queue on the board: what waits, in which order, by which rules; read from the folders at each look."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app.i18n import is_number, number, tr
from app.page import QUIET, TELLING, Page, warn
from core import config, queue, runs, slots, sweep
from core.errors import InputError

ACTS = {"up": "↑", "down": "↓", "drop": "✕"}
PRESS = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (button) trigger("click", { run: button.dataset.run, act: button.dataset.act });
});"""
"""A click on a button of a line tells which one, and whose line it was."""


class QueuePanel:
    """Shown once there are runs: its rules last, whether or not anything waits."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Column(visible=False, elem_id="tb-queue", elem_classes=["tb-queue"]) as self.box:
            self.list = gr.HTML(elem_id="tb-queue-list", js_on_load=PRESS, min_height=0)
            with gr.Row(elem_classes=["tb-runs-bar"]):
                self.pause = page.say(gr.Button(size="sm", elem_id="tb-queue-pause"), value="ui.queue.pause")
                go_on = gr.Button(size="sm", variant="primary", visible=False, elem_id="tb-queue-continue")
                self.go_on = page.say(go_on, value="ui.queue.go_on")
                self.stops = page.say(gr.Checkbox(elem_id="tb-queue-stops"), label="ui.queue.stops")
                self.at_once = page.say(gr.Number(1, step=1, elem_id="tb-queue-at-once"), label="ui.queue.at_once")
        self.outputs: list[Component | gr.Column] = [
            self.box, self.list, self.pause, self.go_on, self.stops, self.at_once,
        ]  # fmt: skip

    def listen(self, again: dict[str, Any]) -> None:
        """Let the buttons work; `again` is the event that looks anew."""
        language = self.page.language
        self.list.click(self._act, language, None, **TELLING).then(**again)
        self.pause.click(lambda: queue.pause(self.page.workspace), None, None, **QUIET).then(**again)
        self.go_on.click(lambda: queue.go_on(self.page.workspace), None, None, **QUIET).then(**again)
        self.stops.input(self._stops, [self.stops, language], None, **QUIET).then(**again)
        for event in (self.at_once.submit, self.at_once.blur):
            event(self._at_once, [self.at_once, language], self.at_once, **TELLING).then(**again)

    def look(self, language: str) -> tuple[tuple[Any, ...], list[Any]]:
        """Return (what a browser is shown, to compare, an update for each of `outputs`)."""
        workspace = self.page.workspace
        order, rules, asleep = list(runs.waiting(workspace)), queue.rules(workspace), queue.asleep(workspace)
        shown = rules.paused or bool(runs.listed(workspace))
        html = self._html(language, order, rules, asleep) if shown else ""
        updates = [
            gr.update(visible=shown),
            html,
            gr.update(visible=not rules.paused),
            gr.update(visible=rules.paused or asleep),
            rules.on_error == "stop",
            rules.at_once,
        ]
        return (html, rules), updates

    def _html(self, language: str, order: list[Path], rules: queue.Rules, asleep: bool) -> str:
        facts = [tr(language, "ui.queue.waiting", n=len(order))]
        for slot, names in slots.taken(self.page.workspace).items():
            facts.append(f"{slot}: {', '.join(names)}")
        said = ""
        if rules.because:
            said = tr(language, "ui.queue.because", run=rules.because)
        elif rules.paused or asleep:
            said = tr(language, "ui.queue.paused" if rules.paused else "ui.queue.asleep")
        note = f'<div class="tb-warning" role="status">{escape(said)}</div>' if said else ""
        told = "".join(f'<span class="tb-fact">{escape(fact)}</span>' for fact in facts)
        lines = "".join(_line(language, place, folder, len(order)) for place, folder in enumerate(order, start=1))
        title = escape(tr(language, "ui.queue.title"))
        return f'<div class="tb-status"><h2>{title}</h2>{told}</div>{note}<ol class="tb-queue-lines">{lines}</ol>'

    # handlers

    def _act(self, language: str, event: gr.EventData) -> None:
        """Do what a button of a line says; the page's script tells which."""
        told = event._data if isinstance(event._data, dict) else {}
        name, act = str(told.get("run", ""))[:200], told.get("act")
        try:
            folder = runs.find(name, self.page.workspace)
            place = runs.look(folder).position
            if act == "drop":
                queue.drop(folder)
            elif act in ACTS:
                queue.move(folder, max(place - 1, 1) if act == "up" else place + 1)
        except InputError as error:
            warn(language, error)

    def _stops(self, stops: Any, language: str) -> None:
        queue.rule(self.page.workspace, on_error="stop" if stops else "continue")

    def _at_once(self, count: Any, language: str) -> int:
        """Set how many run at once on one device; return how many do."""
        try:
            return queue.rule(self.page.workspace, at_once=count).at_once
        except InputError as error:
            warn(language, error)
            return queue.rules(self.page.workspace).at_once


def _line(language: str, place: int, folder: Path, last: int) -> str:
    """Return the line of a waiting run with its buttons."""
    name, values = escape(folder.name), escape(values_told(language, sweep.values_of(folder)))
    buttons = ""
    for act, sign in ACTS.items():
        label = escape(tr(language, f"ui.queue.{act}", run=folder.name))
        off = " disabled" if (act == "up" and place == 1) or (act == "down" and place == last) else ""
        data = f'data-run="{name}" data-act="{act}"'
        buttons += f'<button class="tb-small-button" {data} title="{label}" aria-label="{label}"{off}>{sign}</button>'
    what = f'<span class="tb-what"><b>{name}</b> <span class="tb-muted">{values}</span></span>'
    return f'<li>{what}<span class="tb-buttons">{buttons}</span></li>'


def values_told(language: str, values: dict[str, Any]) -> str:
    """Return the values of a run of a sweep: `Rank 8 · Learning rate 1e-4`."""
    return " · ".join(f"{label(language, key)} {figure(language, value)}" for key, value in values.items())


def label(language: str, key: str) -> str:
    """Return the label of a setting by its key; the key itself where this version has no such setting."""
    paths = {s.key: s.path for s in reversed(config.known_settings(config.Run))}
    return tr(language, f"field.{paths[key]}.label") if key in paths else key


def figure(language: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return number(language, value) if is_number(value) else str(value)
