"""The same run with several values: up to three settings of a form and their values; one run for each combination."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
import yaml

from app.fields import said
from app.form import Form
from app.i18n import number, tr
from app.page import QUIET, Page
from core import sweep
from core.errors import InputError, Problem
from core.schema import Setting

AXES = 3
"""Settings that can be swept at once."""


class Sweeper:
    """A folded card; it keeps nothing on the server."""

    def __init__(self, page: Page, form: Form) -> None:
        self.page, self.form = page, form
        self.known = {name: s for s in form.settings if _sweepable(s) for name in (s.key, s.path)}
        with page.say(gr.Accordion(open=False, elem_id="tb-sweep", elem_classes=["tb-card"]), label="ui.sweep.title"):
            page.say(gr.Markdown(elem_classes=["tb-muted"]), value="ui.sweep.help")
            axes = [self._axis(number) for number in range(AXES)]
            self.told = gr.HTML(elem_id="tb-sweep-told", min_height=0)
            self.add = gr.Button(interactive=False, size="sm", elem_id="tb-sweep-add")
            page.say(self.add, value="ui.sweep.add_none")
        self.fields, self.texts = [field for field, _ in axes], [text for _, text in axes]
        self.inputs = [*self.fields, *self.texts]
        self._listen()

    def _axis(self, place: int) -> tuple[gr.Dropdown, gr.Textbox]:
        with gr.Row(elem_classes=["tb-axis"]):
            field = gr.Dropdown([], value=None, allow_custom_value=True, elem_id=f"tb-sweep-field-{place}")
            text = gr.Textbox(max_lines=1, elem_id=f"tb-sweep-values-{place}")
        return (
            self.page.say(field, label="ui.sweep.field"),
            self.page.say(text, label="ui.sweep.values", placeholder="ui.sweep.example"),
        )

    def _listen(self) -> None:
        language, outputs = self.page.language, [self.told, self.add]
        inputs = [language, *self.inputs, *self.form.inputs]
        tell: dict[str, Any] = {"fn": self.tell, "inputs": inputs, "outputs": outputs, **QUIET}
        for field, text in zip(self.fields, self.texts, strict=True):
            field.focus(self._offer, [language, field, *self.form.inputs], field, **QUIET)
            field.input(self._begin, [field, *self.form.inputs], text, **QUIET).then(**tell)
        # What is pasted or filled in at once is told one value late; leaving the field tells the right one.
        typed = [event for text in self.texts for event in (text.input, text.blur)]
        gr.on(typed, trigger_mode="always_last", **tell)
        language.change(**tell)
        language.change(self._rename, [language, *self.fields], self.fields, **QUIET)

    # handlers

    def tell(self, language: str, *given: Any) -> list[Any]:
        """Say how many runs there will be, or what is wrong with the values; given: those of the sweep, of the form."""
        picked, values = given[: len(self.inputs)], given[len(self.inputs) :]
        off = gr.update(value=tr(language, "ui.sweep.add_none"), interactive=False)
        if not any(picked):
            return ["", off]
        try:
            axes = self._axes(picked)
            sweep.cells(axes, self.form.layer(values))
        except InputError as error:
            unfinished = error.code == "sweep.empty"
            return ["" if unfinished else self.problems(language, error.problems), off]
        counts = [len(values) for values in axes.values()]
        n = math.prod(counts)
        product = " × ".join(number(language, count) for count in counts)
        told = tr(language, "ui.sweep.told" if len(counts) > 1 else "ui.sweep.runs", n=n, product=product)
        label = tr(language, "ui.sweep.add", n=n)
        return [f'<p role="status">{escape(told)}</p>', gr.update(value=label, interactive=True)]

    def start(self, picked: Sequence[Any], values: Sequence[Any]) -> str:
        """Make the runs and put them into the queue; return the name of the first.

        Raises InputError with the values to blame; the fields of the form were found to be right before.
        """
        cells = sweep.cells(self._axes(picked), self.form.layer(values))
        for cell in cells:
            try:
                self.form.job(self.form.values(cell.job))  # paths, too: what is swept may be one
            except InputError as error:
                raise sweep.bad(cell.values, error) from None
        return sweep.make(cells, self.page.workspace)[0].name

    def problems(self, language: str, problems: Sequence[Problem]) -> str:
        """Return what is wrong, each with the label of its setting."""
        lines = []
        for problem in problems:
            path = self.form.home(problem.place)
            label = f"{tr(language, f'field.{path}.label')}: " if path else ""
            lines.append(f"<p>{escape(label + said(language, problem))}</p>")
        return f'<div class="tb-error" role="alert">{"".join(lines)}</div>'

    def _axes(self, picked: Sequence[Any]) -> sweep.Axes:
        given = []
        for field, text in zip(picked[:AXES], picked[AXES:], strict=True):
            if not field and not text:
                continue
            setting = self.known.get(str(field or ""))
            if field and setting is None:
                raise InputError("config.unknown_key", key=str(field)[:80])
            given.append((setting.key if setting else "", str(text or "")))
        return sweep.axes(given)

    def _offer(self, language: str, chosen: Any, *values: Any) -> Any:
        """Offer the settings that count now, by their labels."""
        used = [s for s in self.form.used(self.form.read(values)) if s.path in self.known]
        return gr.update(choices=[_choice(language, s) for s in used], value=chosen)

    def _rename(self, language: str, *fields: Any) -> list[Any]:
        chosen = [self.known.get(str(field or "")) for field in fields]
        return [gr.update(choices=[_choice(language, s)], value=s.path) if s else gr.skip() for s in chosen]

    def _begin(self, field: Any, *values: Any) -> Any:
        """Begin with the value that the form has now."""
        setting = self.known.get(str(field or ""))
        if setting is None:
            return gr.update(value="")
        value = self.form.read(values)[setting.path]
        if isinstance(value, list):  # a list stands in brackets, as in YAML
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
            return gr.update(value=text.strip())
        return gr.update(value="" if value is None else str(value).lower() if isinstance(value, bool) else str(value))


def _sweepable(setting: Setting) -> bool:
    return setting.path != "name"


def _choice(language: str, setting: Setting) -> tuple[str, str]:
    return f"{tr(language, f'field.{setting.path}.label')} · {setting.key}", setting.path
