"""The settings of a form as text: YAML to copy, edit and load back, and the command line that does the same."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
import yaml
from gradio.components import Component
from gradio.events import Dependency

from app.form import Form
from app.page import QUIET, Page
from app.values import Values
from core import config, yamls
from core.errors import InputError

FOLLOW = """(told, written, shown) => {
  if (window.landed?.KIND) sessionStorage.setItem("tuneboard.KIND", told);
  return (written || "") === (shown || "") ? [told, told] : [written, shown];
}"""
"""In the page, at once: an answer on its way while somebody writes must not take the place of what is written. The tab
of the browser keeps the settings over a reload; until the kept ones are asked for, those are not written over."""
KEPT = """() => {
  window.landed = {...window.landed, KIND: true};
  return [sessionStorage.getItem("tuneboard.KIND"), null];
}"""
COMMANDS = {"train": "train", "evaluation": "evaluate"}


class SettingsText:
    """A folded panel; a follower of the form of a job."""

    def __init__(self, page: Page, kind: str) -> None:
        look: dict[str, Any] = {"elem_classes": ["tb-mono"], "buttons": ["copy"], "render": False}
        self.kind = kind
        self.yaml = gr.Textbox(lines=8, max_lines=16, elem_id=f"tb-{kind}-yaml", **look)
        self.command = gr.Textbox(interactive=False, max_lines=4, elem_id=f"tb-{kind}-command", **look)
        page.say(self.yaml, label="ui.train.yaml", info="ui.train.yaml_help")
        page.say(self.command, label="ui.train.command")
        self.told = gr.Textbox(visible=False)
        """The settings as the board tells them."""
        self.shown = gr.Textbox(visible=False)
        """What of that was put into `yaml` last: where the two differ, somebody has written there."""
        # `told` after the two that are read when it changes
        self.outputs: list[Component] = [self.yaml, self.shown, self.told, self.command]

    def lay_out(self, page: Page, form: Form) -> None:
        """Put it here."""
        fold = gr.Accordion(open=False, elem_id=f"tb-{self.kind}-text", elem_classes=["tb-card"])
        with page.say(fold, label="ui.train.text"):
            self.yaml.render()
            load = page.say(gr.Button(size="sm", elem_id=f"tb-{self.kind}-load"), value="ui.train.load")
            self.command.render()
        fill = partial(self._load, form)
        state = [page.language, form.wrong, *form.inputs]
        form.settle(load.click(fill, [self.yaml, *state], form.outputs, **QUIET))
        follow, kept = FOLLOW.replace("KIND", self.kind), KEPT.replace("KIND", self.kind)
        self.told.change(None, [self.told, self.yaml, self.shown], [self.yaml, self.shown], js=follow, **QUIET)

        def restore(landed: Dependency) -> None:
            again = partial(self._restore, form)
            form.settle(landed.then(again, [self.told, page.language], form.outputs, js=kept, **QUIET))

        page.landing.append(restore)

    def updates(self, form: Values, language: str, values: Sequence[Any], *, fill: bool, retell: bool) -> list[Any]:
        """Return one update for each of `outputs`; only what fills the form writes over what somebody has written."""
        if retell:
            return [gr.skip()] * 4
        told, command = self._tell(form, values)
        anew = [gr.update(value=text) for text in (told, told, told, command)]
        return anew if fill else [gr.skip(), gr.skip(), *anew[2:]]

    def _tell(self, form: Values, values: Sequence[Any]) -> list[str]:
        """Return the settings as YAML, whole, and as a command, only what differs from the defaults."""
        layer = form.layer(values)
        try:
            text = config.dump(config.resolve(layer))
        except InputError:
            text = yaml.safe_dump(layer, sort_keys=False, allow_unicode=True)  # as it stands, errors and all
        given = dict(zip((s.path for s in form.settings), values, strict=True))
        words = ["tuneboard", COMMANDS.get(form.kind, form.kind)]
        for s in form.different(given):
            value = yaml.safe_dump(given[s.path], default_flow_style=True, allow_unicode=True, width=10_000)
            value = value.removesuffix("\n...\n").strip()
            words.append(shlex.quote(f"{s.key}{'.kind' if s.union else ''}={value}"))
        return [text, " ".join(words)]

    def _load(self, form: Form, text: str, language: str, before: list[str], *values: Any) -> list[Any]:
        """Fill the form from a YAML text; where the text is wrong, say so and leave it and the fields as they are."""
        try:
            return form.updates(language, form.values(_job(form, text)), fill=True)
        except InputError as error:
            return form.updates(language, values, problems=error.problems, before=before, unfold=True)

    def _restore(self, form: Form, kept: str | None, language: str) -> list[Any]:
        """Fill the form with what it held before a reload; what is no settings any more is forgotten."""
        try:
            values = form.values(_job(form, kept))
        except InputError:
            values = list(form.first.values())
        same = values == list(form.first.values())
        return [gr.skip()] * len(form.outputs) if same else form.updates(language, values, fill=True)


def _job(form: Form, text: Any) -> config.Job:
    """Return the job of a form that a YAML text tells. Raises InputError where it tells none."""
    if not isinstance(text, str):
        raise InputError("config.not_mapping", where="YAML")
    job = config.resolve(yamls.mapping(text, "YAML"), job=form.kind)
    if job.kind != form.kind:
        raise InputError("config.job", "kind", given=job.kind, known=form.kind)
    return job
