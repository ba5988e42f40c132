"""What is known of the model in the form, whether its run will fit into memory, a button for each change that helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app import fit
from app.form import Form
from app.pace import seconds_an_epoch
from app.page import QUIET, Page
from app.values import Values
from core import config
from core.errors import InputError
from core.forecast import OFFERED, forecast
from core.known import about, suits
from core.preflight import check_model, check_packages

BUTTONS = OFFERED + 1
"""Changes that make a run fit, and the settings that suit its model."""
UNSEEN = "hidden"
"""In the page, but not shown: what is put into the page anew may miss a change that comes while it is."""
Patch = Mapping[str, Any]


class Verdict:
    """The components of the verdict; a follower of the form of a run."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.told = gr.HTML(elem_id="tb-fit", min_height=0, render=False)
        self.brief = gr.HTML(elem_id="tb-fit-brief", min_height=0, visible=UNSEEN, render=False)
        """For beside Start, which is in view when nothing else is."""
        shape: dict[str, Any] = {"size": "sm", "visible": UNSEEN, "render": False}
        self.buttons = [gr.Button(**shape, elem_id=f"tb-fix-{number}") for number in range(BUTTONS)]
        self.offered = gr.State([], render=False)
        """The patches behind the buttons, as this page was told of them."""
        self.outputs: list[Component] = [self.told, self.brief, self.offered, *self.buttons]

    def lay_out(self, page: Page, form: Form) -> None:
        """Put them here."""
        with gr.Column(elem_classes=["tb-changes"]):
            self.told.render()
            with gr.Row(elem_classes=["tb-fixes"]):
                for button in self.buttons:
                    button.render()
        self.offered.render()
        for number, button in enumerate(self.buttons):
            mend = partial(self._mend, form, number)
            form.settle(button.click(mend, [page.language, self.offered, *form.inputs], form.outputs, **QUIET))

    def updates(self, form: Values, language: str, values: Sequence[Any], **_: bool) -> list[Any]:
        """Return one update for each of `outputs`; of settings that are wrong, the model's path alone is told."""
        told, brief, offers = self._tell(form, language, values)
        buttons = [gr.update(value=label, visible=True) for label in offers]
        hidden = [gr.update(visible=UNSEEN)] * (BUTTONS - len(buttons))
        patches = [dict(patch) for patch in offers.values()]
        return [
            gr.update(value=told),
            gr.update(value=brief, visible=True if brief else UNSEEN),
            patches,
            *buttons,
            *hidden,
        ]

    def _mend(self, form: Form, number: int, language: str, offered: list[Patch], *values: Any) -> list[Any]:
        """Put one of the offered changes into the form."""
        try:
            mended = config.run(form.job(values).model_dump(), config.nest(offered[number]))
        except InputError as error:
            return form.updates(language, values, problems=error.problems, unfold=True)
        return form.updates(language, form.values(mended), fill=True)

    def _tell(self, form: Values, language: str, values: Sequence[Any]) -> tuple[str, str, dict[str, Patch]]:
        """Return (what is told as HTML, the same in a line where it is bad news, label of a button -> its change)."""
        try:
            run = form.job(values)
            assert isinstance(run, config.Run)
        except InputError as error:  # the fields say what is wrong; of the model, it stands where its verdict would
            of_model = (problem for problem in error.problems if problem.place == "model.path")
            return "".join(fit.problem_told(language, problem) for problem in of_model), "", {}
        told, offers = "", dict[str, Patch]()
        try:
            with suppress(InputError):  # check_model says the same, or better
                told = fit.model_told(language, about(run.model.path, self.workspace))
            if better := suits(run, self.workspace):
                offers[fit.advice_told(language, better)] = better
            check_model(run, self.workspace)
            check_packages(run)
            found = forecast(run, self.workspace)
        except InputError as error:
            return told + fit.problem_told(language, error.problems[0]), "", offers
        except OSError:
            return told, "", offers  # a folder that nobody may read, or that has just gone: Start says so
        if not found:
            return told + fit.unknown(language, run, self.workspace), "", offers
        told += fit.tell(language, run, found, seconds_an_epoch(run, self.workspace))
        offers |= {fit.fix_told(language, fix): fix.patch for fix in found.fixes}
        return told, fit.brief(language, found), offers
