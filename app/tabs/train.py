"""Train: the settings of a run on the left, what it does on the right."""

from __future__ import annotations

import re
import time
from html import escape
from typing import Any

import gradio as gr

from app import jobs
from app.fields import said
from app.form import Form
from app.live import Live
from app.page import QUIET, TELLING, Page
from app.settings_text import SettingsText
from core import config, runs
from core.errors import InputError
from core.recipes import recipe, recipes

KEY, ORDER = "train", 10
CARDS = {
    "model": ("name", "model"),
    "data": ("data",),
    "tuner": ("stage", "tuner"),
    "training": ("optimizer", "training", "saving"),
    "hardware": ("hardware",),
}
FIRST = "demo"
"""The recipe that the form shows first."""
KEPT = ("name", "model.path", "data.folder", "data.train", "data.eval")
"""What a recipe leaves as it is: a recipe is a way to train, the model and the data are the reader's."""
ONCE_SECONDS = 2.0
"""The same settings started again within this time are a double click."""


def build(page: Page) -> None:
    with gr.Row(elem_classes=["tb-workbench"]):
        with gr.Column(elem_classes=["tb-form"], elem_id="tb-form"):
            names = [(recipes()[name].label, name) for name in recipes()]
            picker = gr.Dropdown(names, value=FIRST, elem_id="tb-recipe", filterable=False)
            page.say(picker, label="ui.train.recipe", info="ui.train.recipe_help")
            form = Form(page, config.Run, cards=CARDS, begin=config.resolve(recipe(FIRST).layer))
            with gr.Row(elem_classes=["tb-actions", "tb-start-row"]):
                start = page.say(gr.Button(variant="primary", elem_id="tb-start"), value="ui.train.start")
            SettingsText(page, form)
        Live(page)
    last = gr.State((0.0, {}))
    handlers = _Handlers(page, form)
    start.click(
        handlers.start, [page.run, last, page.language, form.wrong, *form.inputs], [page.run, last, *form.outputs],
        trigger_mode="once", **TELLING,
    )  # fmt: skip
    picker.input(handlers.fill, [picker, page.language, *form.inputs], form.outputs, **QUIET)
    page.clone.change(handlers.clone, [page.clone, page.language], [page.tabs, *form.outputs], **QUIET)
    page.data.change(handlers.take, [page.data, page.language, *form.inputs], [page.tabs, *form.outputs], **QUIET)
    page.language.change(handlers.name_recipes, page.language, picker, **QUIET)


class _Handlers:
    """What the buttons of the tab do."""

    def __init__(self, page: Page, form: Form) -> None:
        self.page, self.form = page, form

    def start(self, run: str, last: tuple[float, dict], language: str, before: list[str], *values: Any) -> list[Any]:
        """Start a run with the values of the form, or show what is wrong with them."""
        form = self.form
        try:
            job = form.job(values)
        except InputError as error:
            wrong = form.updates(language, values, problems=error.problems, before=before, unfold=True)
            return [gr.skip(), gr.skip(), *wrong]
        asked, now = form.layer(values), time.monotonic()
        clear = form.updates(language, values, before=before)
        if asked == last[1] and now - last[0] < ONCE_SECONDS:
            return [gr.skip(), gr.skip(), *clear]
        try:
            folder = jobs.start(job, self.page.workspace)
        except InputError as error:
            return [gr.skip(), gr.skip(), *form.updates(language, values, problems=error.problems, unfold=True)]
        return [folder.name, (now, asked), *clear]

    def fill(self, name: str, language: str, *values: Any) -> list[Any]:
        """Fill the form with a recipe; one that names its run is complete, any other keeps model and data."""
        layer, form = recipe(name).layer, self.form
        given = dict(zip((s.path for s in form.settings), values, strict=True))
        kept = {} if "name" in layer else config.nest({path: given[path] for path in KEPT})
        try:
            job = config.resolve(kept, layer)
        except InputError:
            job = config.resolve(layer)  # what is typed may not be right yet; the recipe counts
        return form.updates(language, form.values(job), fill=True)

    def clone(self, wish: tuple[str, int], language: str) -> list[Any]:
        """Fill the form with the settings of a run and show it."""
        form = self.form
        try:
            job = runs.settings(runs.find(wish[0], self.page.workspace))
        except InputError as error:
            gr.Warning(escape(said(language, error.problems[0])))
            return [gr.skip()] * (1 + len(form.outputs))
        if not isinstance(job, config.Run):
            return [gr.skip()] * (1 + len(form.outputs))
        return [gr.update(selected=KEY), *form.updates(language, form.values(job), fill=True)]

    def take(self, wish: tuple[dict[str, Any], int], language: str, *values: Any) -> list[Any]:
        """Put a set, and the settings with which it was looked at, into the form and show it; the rest stays."""
        form, (asked, _) = self.form, wish
        title = re.sub(r"[^\w-]+", "-", asked["data"]["train"][0].partition(".")[0]).strip("-_")[:60]
        try:
            job = config.resolve(form.layer(values), {"name": title, **asked})
        except InputError:
            job = config.resolve({"name": title, **asked})  # what is typed may not be right yet; the set counts
        return [gr.update(selected=KEY), *form.updates(language, form.values(job), fill=True)]

    def name_recipes(self, language: str) -> Any:
        from app.i18n import tr

        return gr.update(choices=[(tr(language, f"recipe.{name}.label"), name) for name in recipes()])
