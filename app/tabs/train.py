"""Train: the settings of a run on the left, what it does on the right."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app import jobs
from app.form import Form
from app.live import Live
from app.page import QUIET, TELLING, Page, warn
from app.settings_text import SettingsText
from app.sweeper import Sweeper
from app.values import Values
from app.verdict import Verdict
from core import config, runs
from core.errors import InputError
from core.recipes import recipe, recipes
from core.sections import DEMO_DATA

KEY, ORDER = "train", 10
CARDS = {
    "model": ("name", "model"),
    "data": ("data",),
    "tuner": ("stage", "tuner"),
    "training": ("optimizer", "training", "watching", "saving"),
    "hardware": ("hardware", "launcher"),
}
FIRST = "demo"
"""The recipe that the form shows first."""
SETS = ("data.train", "data.eval")
KEPT = ("name", "model.path", "data.folder", *SETS)
"""What a recipe leaves as it is: a recipe is a way to train, the model and the data are the reader's. Of the bundled
data it chooses the sets that suit it."""
ONCE_SECONDS = 2.0
"""The same settings started again within this time are a double click."""


def build(page: Page, tab: gr.Tab) -> None:
    with gr.Row(elem_classes=["tb-workbench"]):
        with gr.Column(elem_classes=["tb-form"], elem_id="tb-form"):
            starts = _Recipes(page)
            verdict, text = Verdict(page.workspace), SettingsText(page, KEY)
            begin = config.resolve(recipe(FIRST).layer)
            form = Form(page, config.Run, cards=CARDS, begin=begin, followers=(verdict, text, starts))
            verdict.lay_out(page, form)
            with gr.Row(elem_classes=["tb-actions", "tb-start-row"]):
                start = page.say(gr.Button(variant="primary", elem_id="tb-start"), value="ui.train.start")
                wait = page.say(gr.Button(elem_id="tb-enqueue"), value="ui.train.enqueue")
                verdict.brief.render()
            sweeper = Sweeper(page, form)
            text.lay_out(page, form)
        Live(page)
    last = gr.State((0.0, {}))
    handlers, picker = _Handlers(page, form), starts.picker
    state, outputs = [last, page.language, form.wrong], [page.run, last, *form.outputs]
    for button, begin_ in ((start, jobs.start), (wait, jobs.enqueue)):
        click = partial(handlers.start, begin_)
        button.click(click, [*state, *form.inputs], outputs, trigger_mode="once", **TELLING)
    sweep = partial(handlers.sweep, sweeper)
    sweeper.add.click(
        sweep, [*state, *sweeper.inputs, *form.inputs], [sweeper.told, *outputs], trigger_mode="once", **TELLING
    )
    form.settle(picker.input(handlers.fill, [picker, page.language, *form.inputs], form.outputs, **QUIET))
    shown = [page.tabs, *form.outputs]
    form.settle(page.clone.change(handlers.clone, [page.clone, page.language], shown, **QUIET))
    form.settle(page.data.change(handlers.take, [page.data, page.language, *form.inputs], shown, **QUIET))
    page.language.change(handlers.name_recipes, page.language, picker, **QUIET)


class _Recipes:
    """What the form can be begun with; a follower of it, for what is filled in from elsewhere is no recipe."""

    def __init__(self, page: Page) -> None:
        names = [(recipes()[name].label, name) for name in recipes()]
        self.picker = gr.Dropdown(names, value=FIRST, elem_id="tb-recipe", filterable=False)
        page.say(self.picker, label="ui.train.recipe", info="ui.train.recipe_help")
        self.outputs: list[Component] = [self.picker]

    def updates(self, form: Values, language: str, values: Sequence[Any], *, fill: bool, retell: bool) -> list[Any]:
        """Return one update for each of `outputs`."""
        return [gr.update(value=None) if fill else gr.skip()]


class _Handlers:
    """What the buttons of the tab do."""

    def __init__(self, page: Page, form: Form) -> None:
        self.page, self.form = page, form

    def start(
        self, begin: Callable[[config.Job, Path], Path], last: tuple[float, dict], language: str, before: list[str],
        *values: Any,
    ) -> list[Any]:  # fmt: skip
        """Begin a run with the values of the form, now or in the queue, or show what is wrong with them."""
        form = self.form
        try:
            job = form.job(values)
            asked, now = form.layer(values), time.monotonic()
            if asked == last[1] and now - last[0] < ONCE_SECONDS:
                return [gr.skip(), gr.skip(), *form.updates(language, values, before=before)]
            folder = begin(job, self.page.workspace)
        except InputError as error:
            wrong = form.updates(language, values, problems=error.problems, before=before, unfold=True)
            return [gr.skip(), gr.skip(), *wrong]
        return [folder.name, (now, asked), *form.updates(language, values, before=before)]

    def sweep(
        self, sweeper: Sweeper, last: tuple[float, Any], language: str, before: list[str], *given: Any
    ) -> list[Any]:
        """Put a run into the queue for each combination of the values given, or show what is wrong with them."""
        form, count = self.form, len(sweeper.inputs)
        picked, values = given[:count], given[count:]
        now = time.monotonic()
        clear = form.updates(language, values, before=before)
        if list(given) == last[1] and now - last[0] < ONCE_SECONDS:
            return [gr.skip()] * 3 + clear
        try:
            form.job(values)
        except InputError as error:
            wrong = form.updates(language, values, problems=error.problems, before=before, unfold=True)
            return [gr.skip()] * 3 + wrong
        try:
            first = sweeper.start(picked, values)
        except InputError as error:
            return [sweeper.problems(language, error.problems), gr.skip(), gr.skip(), *clear]
        return [gr.skip(), first, (now, list(given)), *clear]

    def fill(self, name: str, language: str, *values: Any) -> list[Any]:
        """Fill the form with a recipe; one that names its run is complete, any other keeps model and data.

        A run is called after its recipe until somebody gives it a name.
        """
        layer, form = recipe(name).layer, self.form
        given = dict(zip((s.path for s in form.settings), values, strict=True))
        left: set[str] = set(SETS) if given["data.folder"] == DEMO_DATA else set()
        if given["name"] in (form.first["name"], *recipes()):
            left.add("name")
        kept = {} if "name" in layer else config.nest({path: given[path] for path in KEPT if path not in left})
        try:
            job = config.resolve({"name": name}, kept, layer)
        except InputError:
            job = config.resolve({"name": name}, layer)  # what is typed may not be right yet; the recipe counts
        return [*form.updates(language, form.values(job), fill=True)[:-1], gr.skip()]  # the recipe stays chosen

    def clone(self, wish: tuple[str, int], language: str) -> list[Any]:
        """Fill the form with the settings of a run and show it."""
        form = self.form
        try:
            job = runs.settings(runs.find(wish[0], self.page.workspace))
        except InputError as error:
            warn(language, error)
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
