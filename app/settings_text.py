"""The settings of a form as text: YAML to copy, edit and load back, and the command line that does the same."""

from __future__ import annotations

import shlex
from typing import Any

import gradio as gr
import yaml
from pydantic import TypeAdapter, ValidationError

from app.form import Form
from app.page import QUIET, Page
from core import config, yamls
from core.errors import InputError, Problem

COMMANDS = {"train": "train", "evaluation": "evaluate"}


class SettingsText:
    """A folded panel below a form."""

    def __init__(self, page: Page, form: Form) -> None:
        self.form = form
        with page.say(
            gr.Accordion(open=False, elem_id=f"tb-{form.kind}-text", elem_classes=["tb-card"]), label="ui.train.text"
        ) as fold:
            self.yaml = page.say(
                gr.Textbox(
                    lines=8, max_lines=16, buttons=["copy"], elem_id=f"tb-{form.kind}-yaml", elem_classes=["tb-mono"]
                ),
                label="ui.train.yaml",
                info="ui.train.yaml_help",
            )
            load = page.say(gr.Button(size="sm", elem_id=f"tb-{form.kind}-load"), value="ui.train.load")
            self.command = page.say(
                gr.Textbox(
                    interactive=False,
                    max_lines=4,
                    elem_id=f"tb-{form.kind}-command",
                    elem_classes=["tb-mono"],
                    buttons=["copy"],
                ),
                label="ui.train.command",
            )
        fold.expand(self._tell, form.inputs, [self.yaml, self.command], **QUIET)
        form.changed.change(self._tell, form.inputs, [self.yaml, self.command], **QUIET)
        load.click(self._load, [self.yaml, page.language, form.wrong, *form.inputs], form.outputs, **QUIET)

    def _tell(self, *values: Any) -> list[str]:
        """Return the settings as YAML, whole, and as a command, only what differs from the defaults."""
        layer = self.form.layer(values)
        try:
            text = config.dump(config.resolve(layer))
        except InputError:
            text = yaml.safe_dump(layer, sort_keys=False, allow_unicode=True)  # as it stands, errors and all
        given = dict(zip((s.path for s in self.form.settings), values, strict=True))
        words = ["tuneboard", COMMANDS.get(self.form.kind, self.form.kind)]
        for s in self.form.different(given):
            value = yaml.safe_dump(given[s.path], default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
            words.append(shlex.quote(f"{s.key}{'.kind' if s.union else ''}={value}"))
        return [text, " ".join(words)]

    def _load(self, text: str, language: str, before: list[str], *values: Any) -> list[Any]:
        """Fill the form from a YAML text; where the text is wrong, say so and leave the fields as they are."""
        form = self.form
        try:
            checked = TypeAdapter(str).validate_python(text)
            job = config.resolve(yamls.mapping(checked, "YAML"), job=form.kind)
            if job.kind != form.kind:
                raise InputError("config.job", "kind", given=job.kind, known=form.kind)
        except ValidationError:
            return form.updates(language, values, problems=[Problem("config.not_mapping", "", {"where": "YAML"})])
        except InputError as error:
            return form.updates(language, values, problems=error.problems, before=before, unfold=True)
        return form.updates(language, form.values(job), fill=True)
