"""Chat: the base and tuned models answer the same question side by side, with one seed. They live in a serving run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from html import escape
from typing import Any

import gradio as gr

from app import images, jobs, jobtab, show, talk
from app.answers import BASE
from app.fields import make, said, texts
from app.form import Form
from app.i18n import tr
from app.page import QUIET, TELLING, Page
from core import config, runs
from core.errors import InputError, Problem
from core.generation import Generation
from core.runs import View
from core.schema import settings

KEY, ORDER = "chat", 30
COLUMNS = 4
"""Models side by side at most: the base and three tuned ones."""
SAMPLING = tuple(settings(Generation, "generation."))
WARM = {"generation.temperature": 0.7}
"""What a chat begins with where a measurement has another default."""
LONGEST_QUESTION = 100_000
Histories = list[list[talk.Message]]
"""The conversation of each column; kept by the session, for what a page sends could be anything."""


def build(page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and wire it."""
    with gr.Row(elem_classes=["tb-workbench", "tb-chat"]):
        with gr.Column(elem_classes=["tb-form"]):
            form = Form(page, config.Serving, only=("model", "tuned", "hardware"), cards=_CARDS)
            with gr.Row(elem_classes=["tb-chat-load"]):
                load = page.say(gr.Button(variant="primary", elem_id="tb-chat-load"), value="ui.chat.load")
                unload = page.say(gr.Button(visible=False, elem_id="tb-chat-unload"), value="ui.chat.unload")
            system, fields = _sampling(page)
        with gr.Column(elem_classes=["tb-chat-room"]):
            status = gr.HTML(elem_id="tb-chat-status", min_height=0)
            note = gr.HTML(elem_id="tb-chat-note", visible=False, min_height=0)
            with gr.Row(elem_classes=["tb-chat-answers"]):
                columns = [_column(page, index) for index in range(COLUMNS)]
            question, image, buttons = _ask(page)
    served, histories = gr.State(""), gr.State([[] for _ in range(COLUMNS)])
    timer = gr.Timer(jobtab.TICK_SECONDS, active=False)
    _wire_load(page, tab, form, load, unload, served, timer, [status, image, *columns])
    asking = [page.language, served, histories, question, image, system, *fields]
    _wire_ask(page, buttons, question, asking, [*columns, histories, question, image, note, buttons["stop"], *fields])


_CARDS = {"tuned": ("tuned", "model"), "hardware": ("hardware",)}


def _sampling(page: Page) -> tuple[gr.Textbox, list[Any]]:
    """Lay out how answers are drawn, folded."""
    with page.say(gr.Accordion(open=False, elem_classes=["tb-card"]), label="ui.chat.sampling"):
        system = gr.Textbox(lines=2, max_lines=6, elem_id="tb-chat-system", elem_classes=["tb-wide"])
        page.say(system, label="ui.chat.system", info="ui.chat.system_help")
        fields = [make(setting, KEY) for setting in SAMPLING]
    for setting, field in zip(SAMPLING, fields, strict=True):
        field.value = WARM.get(setting.path, field.value)
    retold = lambda language: [gr.update(**texts(language, setting)) for setting in SAMPLING]  # noqa: E731
    page.language.change(retold, page.language, fields, **QUIET)
    return system, fields


def _column(page: Page, index: int) -> gr.Chatbot:
    """Return the place of one model's answers."""
    chatbot = gr.Chatbot(
        render_markdown=False, sanitize_html=True, allow_tags=False, buttons=[], feedback_options=None,
        layout="bubble", min_width=0, height=None, visible=index == 0, elem_id=f"tb-chat-answer-{index}",
        elem_classes=["tb-answer"],
    )  # fmt: skip
    return page.say(chatbot, placeholder="ui.chat.empty")


def _ask(page: Page) -> tuple[gr.Textbox, gr.UploadButton, dict[str, gr.Button]]:
    """Lay out the question, the image beside it for models that see, and the buttons."""
    with gr.Row(elem_classes=["tb-chat-ask"]):
        question = gr.Textbox(
            lines=1, max_lines=6, container=False, show_label=False, scale=1, max_length=LONGEST_QUESTION,
            elem_id="tb-chat-input",
        )  # fmt: skip
        page.say(question, label="ui.chat.question", placeholder="ui.chat.question")
        image = images.button(page)
        buttons = {}
        for name in ("send", "stop", "retry", "clear"):
            variant = {"send": "primary", "stop": "stop"}.get(name, "secondary")
            shape: dict[str, Any] = {"variant": variant, "min_width": 80, "scale": 0, "visible": name != "stop"}
            buttons[name] = page.say(gr.Button(**shape, elem_id=f"tb-chat-{name}"), value=f"ui.chat.{name}")
    return question, image, buttons


def _wire_load(
    page: Page,
    tab: gr.Tab,
    form: Form,
    load: gr.Button,
    unload: gr.Button,
    served: gr.State,
    timer: gr.Timer,
    outputs: list[Any],
) -> None:
    """Load and unload the line-up; find one that is loaded when the page opens."""

    def begin(language: str, before: list[str], *values: Any) -> list[Any]:
        try:
            job = form.job(values)
            assert isinstance(job, config.Serving)
            if len(job.tuned) >= COLUMNS:
                raise InputError("config.too_long", "tuned", max_length=COLUMNS - 1)
            folder = talk.bring_up(job, page.workspace)
        except InputError as error:
            return [*form.updates(language, values, problems=error.problems, before=before, unfold=True), gr.update()]
        return [*form.updates(language, values, before=before), folder.name]

    def found(run: str, name: str, chosen: Any) -> list[Any]:
        if name or chosen:
            return [gr.skip()] * (len(form.inputs) + 1)
        up = [f for f in jobs.of_kind("serving", page.workspace) if runs.look(f).status in ("starting", "running")]
        if up:
            return [*form.values(jobs.settings(up[0])), up[0].name]
        return [*form.values(_wished(page, run)), ""]

    def look(language: str, name: str) -> list[Any]:
        view = _view(name, page)
        up = view is not None and view.active
        place = talk.ready(view.folder) if view and up else None
        told = _ready(language, place.models) if place else show.head(language, view) if view else ""
        labels = place.models if place else _expected(view) if view and up else (BASE,)
        sees = gr.update(visible=bool(place and place.sees))
        return [gr.update(visible=up), gr.Timer(active=up and place is None), told, sees, *_columns(language, labels)]

    state = [page.language, form.wrong, *form.inputs]
    load.click(begin, state, [*form.outputs, served], **TELLING)
    unload.click(lambda name: _unload(name, page), served, timer, **QUIET)
    gr.on([served.change, timer.tick, page.language.change], look, [page.language, served],
          [unload, timer, *outputs], **QUIET)  # fmt: skip
    seen = [page.run, served, form.fields["tuned"]]
    jobtab.retell(page, form, tab.select(found, seen, [*form.inputs, served], **TELLING))
    jobtab.follow_base(page, form, "tuned")
    jobtab.follow_wish(page, form, "tuned")


def _wire_ask(
    page: Page, buttons: dict[str, gr.Button], question: gr.Textbox, inputs: list[Any], outputs: list[Any]
) -> None:
    """Send, stop, ask again, clear."""

    def ask(
        language: str, name: str, histories: Histories, text: Any, image: Any, system: Any, *values: Any
    ) -> Iterator[Any]:
        question = lambda: talk.asked(str(text or "").strip(), images.parts(image))  # noqa: E731
        yield from _answer(page, language, name, histories, question, str(system or ""), values)

    def again(
        language: str, name: str, histories: Histories, _: Any, __: Any, system: Any, *values: Any
    ) -> Iterator[Any]:
        asked = [index for index, message in enumerate(histories[0]) if message["role"] == "user"]
        if asked:
            question, trimmed = histories[0][asked[-1]], [history[: asked[-1]] for history in histories]
            yield from _answer(page, language, name, trimmed, lambda: question, str(system or ""), values)

    stop = buttons["stop"]
    busy: dict[str, Any] = {"concurrency_id": "chat", "concurrency_limit": 8, **TELLING}
    events: list[Any] = [
        gr.on([question.submit, buttons["send"].click], ask, inputs, outputs, **busy),
        buttons["retry"].click(again, inputs, outputs, **busy),
    ]
    stop.click(lambda: gr.update(visible=False), None, stop, cancels=events, **QUIET)
    columns, histories = outputs[:COLUMNS], inputs[2]
    empty = lambda: [*[[] for _ in columns], [[] for _ in columns], gr.update(visible=False)]  # noqa: E731
    buttons["clear"].click(empty, None, [*columns, histories, stop], cancels=events, **QUIET)
    images.wire(page, inputs[4], buttons["clear"])
    served = inputs[1]  # another line-up begins another conversation
    served.change(empty, None, [*columns, histories, stop], **QUIET)


def _answer(
    page: Page, language: str, name: str, histories: Histories, question: Callable[[], talk.Message], system: str,
    values: tuple[Any, ...],
) -> Iterator[list[Any]]:  # fmt: skip
    """Yield the page while the answers grow: columns, histories, question, image, note, Stop, sampling fields."""
    same, hidden, kept = [gr.update()] * len(SAMPLING), gr.update(visible=False), [gr.update()] * 2
    text: Any = gr.update()
    try:
        generation, message = _generation(values), question()
        view = _view(name, page)
        place = talk.ready(view.folder) if view else None
        if place is None or not talk.text(message):
            note = _note(language, None if place else "unloaded")
            yield [*[gr.update()] * COLUMNS, histories, *kept, note, hidden, *same]
            return
        asked = [[*history, message] for history in histories[: len(place.models)]]
        first = [{"role": "system", "content": system}] if system.strip() else []
        with closing(talk.answers(place, [[*first, *messages] for messages in asked], generation)) as growing:
            rest, grown, text = histories[len(asked) :], asked, talk.text(message)
            yield [*_shown(asked), asked + rest, "", gr.update(), _note(language, None), gr.update(visible=True), *same]
            taken = iter([images.none(language)])  # the image goes once it was taken: a refusal leaves it there
            for told in growing:
                grown = [[*a, {"role": "assistant", "content": t}] for a, t in zip(asked, told, strict=True)]
                image = next(taken, gr.update())
                yield [*_shown(grown), grown + rest, gr.update(), image, gr.update(), gr.update(), *same]
            yield [*_shown(grown), grown + rest, *kept, gr.update(), hidden, *same]
    except InputError as error:
        note = _complaint(language, error.problems)
        yield [*_shown(histories), histories, text, gr.update(), note, hidden, *_marked(language, error.problems)]


def _generation(values: tuple[Any, ...]) -> Generation:
    """Return the checked sampling settings; raise InputError at generation.<name>."""
    given = {setting.key: value for setting, value in zip(SAMPLING, values, strict=True)}
    job = config.resolve(config.nest(given), job="evaluation")
    assert isinstance(job, config.Evaluation)
    return job.generation


def _shown(histories: Histories) -> list[Any]:
    """Return the value of each column; those of no model stay as they are.

    What a model says is text. gradio would draw the HTML in it even without Markdown, pictures from anywhere included.
    """
    escaped = [[{**message, "content": images.told(message)} for message in history] for history in histories]
    return [*escaped, *[gr.update()] * (COLUMNS - len(histories))]


def _columns(language: str, names: tuple[str, ...]) -> list[Any]:
    """Return the updates that show a column for each model, with its name."""
    shown = [tr(language, "ui.chat.base") if name == BASE else name for name in names]
    return [gr.update(visible=i < len(shown), label=shown[i] if i < len(shown) else "") for i in range(COLUMNS)]


def _expected(view: View) -> tuple[str, ...]:
    """Return the names of the line-up that is still being loaded."""
    job = jobs.settings(view.folder)
    return (BASE, *dict.fromkeys(job.tuned)) if isinstance(job, config.Serving) else (BASE,)


def _view(name: str, page: Page) -> View | None:
    """Return the view of the serving run; None where there is none (any more)."""
    try:
        return runs.look(runs.find(name, page.workspace))
    except InputError:
        return None


def _wished(page: Page, run: str) -> config.Job:
    """Return the line-up that a page begins with: a tuned run beside its base."""
    wish = jobtab.wished(page, run, "serving")
    layer = {"tuned": [wish], "model": jobs.base(wish, page.workspace)} if wish else {}
    return config.resolve(layer, job="serving")


def _unload(name: str, page: Page) -> Any:
    """Stop the server; the timer then follows it to its end."""
    view = _view(name, page)
    if view:
        runs.stop(view.folder)
    return gr.Timer(active=True)


def _ready(language: str, names: tuple[str, ...]) -> str:
    spoken = [tr(language, "ui.chat.base") if name == BASE else name for name in names]
    told = tr(language, "ui.chat.ready", names=", ".join(spoken))
    return f'<div class="tb-status"><span class="tb-chip tb-chip-done">{escape(told)}</span></div>'


def _note(language: str, key: str | None) -> Any:
    """Return the message above the question, or none."""
    if key is None:
        return gr.update(value="", visible=False)
    told = escape(tr(language, f"ui.chat.{key}"))
    return gr.update(value=f'<div class="tb-error" role="alert">{told}</div>', visible=True)


def _complaint(language: str, problems: tuple[Problem, ...]) -> Any:
    labels = {setting.path: tr(language, f"field.{setting.path}.label") + ": " for setting in SAMPLING}
    told = "<br>".join(escape(labels.get(p.place, "") + said(language, p)) for p in problems)
    return gr.update(value=f'<div class="tb-error" role="alert">{told}</div>', visible=True)


def _marked(language: str, problems: tuple[Problem, ...]) -> list[Any]:
    """Return the sampling fields with the problems that belong to them."""
    placed = {problem.place: problem for problem in problems}
    return [gr.update(**texts(language, setting, placed.get(setting.path))) for setting in SAMPLING]
