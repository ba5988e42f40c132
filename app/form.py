"""The settings of any job as a form: cards of fields built from the declarations, with each error at its field.

`Form(page, Run)` inside a layout puts the cards there. Handlers take `form.inputs` and return `form.updates(...)` for
`form.outputs`. Nothing of a form is kept on the server: the values come from the page with each call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Protocol
from uuid import uuid4

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from app.code_note import note
from app.fields import brief, make, said, texts
from app.i18n import tr
from app.page import QUIET, Page
from app.pickers import offers
from app.values import JobClass, Values
from core.errors import Problem
from core.schema import Setting, Spec, variants

BRIEFS = 3
"""Values that the head of a card tells."""


class Follower(Protocol):
    """What tells something of the values of a form, anew whenever they change."""

    outputs: list[Component]

    def updates(self, form: Values, language: str, values: Sequence[Any], *, fill: bool, retell: bool) -> list[Any]:
        """Return one update for each of `outputs`; fill: the form is filled with the values; retell: they are as they
        were, in another language."""
        ...


class Form(Values):
    """The fields of one job class, laid out in numbered cards that open in place.

    cards: title -> names of the top-level fields in that card; by default every section is a card.
    begin: the job that the fields show first; by default the defaults.
    followers: what is updated with the form, laid out elsewhere.
    """

    def __init__(
        self,
        page: Page,
        job: JobClass,
        *,
        only: Iterable[str] = (),
        skip: Iterable[str] = (),
        cards: Mapping[str, tuple[str, ...]] | None = None,
        begin: Spec | None = None,
        followers: Sequence[Follower] = (),
    ) -> None:
        super().__init__(job, page.workspace, page.allowed, only, skip)
        self.page, self.followers = page, followers
        begun = self.values(begin) if begin else self.defaults()
        self.first = {s.path: value for s, value in zip(self.settings, begun, strict=True)}
        self.fields: dict[str, Component] = {}
        self.groups: dict[tuple[str, str, bool], gr.Column] = {}
        self.cards: dict[str, gr.Accordion] = {}
        self.code: list[gr.HTML] = []
        """Where code that the chosen model brings is told of; none in a form without a model."""
        self.members = dict(cards or _cards(job, self.settings))
        for number, title in enumerate(self.members, start=1):
            self._card(number, title)
        with gr.Column(elem_classes=["tb-changes"]):
            self.note = gr.HTML(visible=False, elem_id=f"tb-{self.kind}-note")
            told, resettable = self._changes("en", self.first)
            shown = {key: told[key] for key in ("choices", "value", "label", "info", "visible")}
            self.changed = gr.Dropdown(
                **shown, multiselect=True, allow_custom_value=True, elem_classes=["tb-changed"],
                elem_id=f"tb-{self.kind}-changed",
            )  # fmt: skip
            reset = gr.Button(size="sm", visible=resettable["visible"], elem_id=f"tb-{self.kind}-reset")
            self.reset = page.say(reset, value="ui.form.reset")
        self.wrong = gr.State([])
        self.filling = gr.Textbox(visible=False)
        """Another text each time the fields are filled or a kind is chosen."""
        self.filled = gr.Textbox(visible=False)
        """The same, once all is in its field: they are told of once more then, for an earlier answer may come late."""
        self.inputs = [self.fields[s.path] for s in self.settings]
        self.outputs = [*self.inputs, *self.groups.values(), *self.cards.values(), self.changed, self.reset, self.note]
        self.outputs += [*self.code, self.wrong, self.filling, *(output for one in followers for output in one.outputs)]
        self._listen()

    # layout

    def _card(self, number: int, title: str) -> None:
        mine = [s for s in self.settings if s.path.partition(".")[0] in self.members[title]]
        # Within a card the order of its members counts, not that of the declaration.
        mine.sort(key=lambda s: self.members[title].index(s.path.partition(".")[0]))
        label = self._head("en", title, self.first)
        with gr.Accordion(
            label, open=number == 1, elem_id=f"tb-card-{self.kind}-{title}", elem_classes=["tb-card"]
        ) as card:
            if "model.path" in {s.path for s in mine}:
                self.code.append(gr.HTML(visible=False, elem_id=f"tb-{self.kind}-code"))
            self._part([s for s in mine if not s.expert], expert=False)
            if expert := [s for s in mine if s.expert]:
                with self.page.say(gr.Accordion(open=False, elem_classes=["tb-expert"]), label="ui.form.expert"):
                    self._part(expert, expert=True)
        self.cards[title] = card

    def _part(self, part: list[Setting], *, expert: bool) -> None:
        """Lay out one half of a card: the settings of each kind of a choice stand in a group of their own."""
        done: set[tuple[str, str]] = set()
        # Gradio lays out neighbours as one block, so the groups, which interrupt it, come last.
        for setting in sorted(part, key=lambda s: s.variant is not None):
            if setting.variant is None:
                self._field(setting)
            elif setting.variant not in done:
                done.add(setting.variant)
                place, kind = setting.variant
                with gr.Column(visible=self.first.get(place, kind) == kind, elem_classes=["tb-variant"]) as group:
                    for inner in part:
                        if inner.variant == setting.variant:
                            self._field(inner)
                self.groups[place, kind, expert] = group

    def _field(self, setting: Setting) -> None:
        self.fields[setting.path] = make(setting, self.kind, self.first[setting.path])

    def _listen(self) -> None:
        state = [self.page.language, self.wrong, *self.inputs]
        # Not change: filling the form would call 45 times. (Gradio's base class does not declare the events.)
        kinds = [self.fields[s.path] for s in self.settings if s.union]
        touched = [field.input for field in self.inputs if field not in kinds]  # type: ignore[attr-defined]
        # What is pasted or filled in at once is told one value late; leaving the field tells the right one.
        touched += [field.blur for field in self.inputs if isinstance(field, gr.Textbox | gr.Number)]
        touched.append(self.filled.change)
        gr.on(touched, self._touched, state, self.outputs, trigger_mode="always_last", **QUIET)
        chosen = [field.input for field in kinds]  # type: ignore[attr-defined]
        self.settle(gr.on(chosen, self._chosen, state, self.outputs, trigger_mode="always_last", **QUIET))
        self.page.language.change(self._translated, state, self.outputs, **QUIET)
        self.settle(self.reset.click(self._reset, self.page.language, self.outputs, **QUIET))
        if told := [output for one in self.followers for output in one.outputs]:
            first = partial(self._followed, "en", list(self.first.values()), fill=False, retell=False)
            gr.on(None, first, [], told, **QUIET)
        kept = [self.page.language, self.changed, *self.inputs]
        self.settle(self.changed.input(self._kept, kept, self.outputs, **QUIET))
        for setting in self.settings:
            if setting.pick:
                folder = self.fields.get(f"{setting.path.rpartition('.')[0]}.folder") if setting.pick == "set" else None
                field = self.fields[setting.path]
                sources = [field, *([folder] if folder else [])]
                field.focus(self._offer(setting), sources, field, **QUIET)  # type: ignore[attr-defined]

    def settle(self, event: Dependency) -> None:
        """Tell once more of what an event has filled in; not before, for gradio fills the fields one after another."""
        event.then(None, self.filling, self.filled, js="filling => filling", **QUIET)

    # updates

    def updates(
        self,
        language: str,
        values: Sequence[Any],
        *,
        problems: Sequence[Problem] = (),
        before: Sequence[str] = (),
        fill: bool = False,
        chosen: bool = False,
        retell: bool = False,
        unfold: bool = False,
    ) -> list[Any]:
        """Return one update for each of `outputs`.

        problems go to their fields; `before` names the fields that showed one until now. fill: put the values in.
        retell: write all texts anew, but those of the kinds that are not chosen; chosen: one may be now, so write
        its texts. unfold: open the card of the first problem.
        """
        given, placed = self.read(values), {}
        for problem in problems:
            placed.setdefault(self.home(problem.place), problem)
        fields = []
        for setting, value in zip(self.settings, values, strict=True):
            shown = (fill or chosen or retell) and self.active(setting, given)
            anew = shown or setting.path in placed or setting.path in before
            update = texts(language, setting, placed.get(setting.path)) if anew else {}
            fields.append(gr.update(**update, **({"value": value} if fill else {})))
        groups = [gr.skip()] * len(self.groups)
        if fill or chosen:
            groups = [gr.update(visible=given.get(place) == kind) for place, kind, _ in self.groups]
        return [
            *fields,
            *groups,
            *self._heads(language, given, placed, unfold),
            *self._changes(language, given),
            self._general(language, placed, unfold),
            *self._foreign(language, given),
            [path for path in placed if path],
            uuid4().hex if fill or chosen else gr.skip(),
            *self._followed(language, values, fill=fill, retell=retell),
        ]

    def _followed(self, language: str, values: Sequence[Any], **how: bool) -> list[Any]:
        return [update for one in self.followers for update in one.updates(self, language, values, **how)]

    def _heads(self, language: str, given: dict[str, Any], placed: dict[str, Problem], unfold: bool) -> list[Any]:
        first = next((s.path for s in self.settings if s.path in placed), "").partition(".")[0]
        updates = []
        for title, members in self.members.items():
            label = self._head(language, title, given)
            updates.append(gr.update(label=label, open=True) if unfold and first in members else gr.update(label=label))
        return updates

    def _head(self, language: str, title: str, given: dict[str, Any]) -> str:
        """Return the head of a card: its number and name, on a second line what is set in it."""
        number = list(self.members).index(title) + 1
        name = tr(language, f"section.{title}.label")
        if name.startswith("section."):
            name = tr(language, f"field.{title}.label")
        shown = [
            text
            for s in self.settings
            if s.path.partition(".")[0] in self.members[title] and s.path != "name" and not s.expert
            if self.active(s, given) and not (s.union and len(variants(s.union.package)) < 2)
            if (text := brief(language, s, given[s.path]))
        ]
        return f"{number}  {name}\n{' · '.join(shown[:BRIEFS])}"

    def _changes(self, language: str, given: dict[str, Any]) -> list[Any]:
        used = self.different(given)
        choices = [(tr(language, f"field.{s.path}.label"), s.path) for s in used]
        label = tr(language, "ui.form.changed", n=len(used))
        value = [s.path for s in used]
        info = tr(language, "ui.form.changed_help")
        return [
            gr.update(choices=choices, value=value, label=label, info=info, visible=bool(used)),
            gr.update(visible=bool(used)),
        ]

    def _general(self, language: str, placed: dict[str, Problem], unfold: bool) -> Any:
        """Return the note above the buttons: problems of no single field, and after Start how many there are."""
        lines = [said(language, problem) for path, problem in placed.items() if not path]
        if unfold and any(placed):
            names = [tr(language, f"field.{path}.label") for path in placed if path]
            lines.append(tr(language, "ui.form.mend", n=len(names), names=", ".join(names)))
        text = "".join(f"<p>{escape(line)}</p>" for line in lines)
        return gr.update(value=f'<div class="tb-error" role="alert">{text}</div>' if lines else "", visible=bool(lines))

    def _foreign(self, language: str, given: dict[str, Any]) -> list[Any]:
        """Return what there is to tell of code that the chosen model brings."""
        told = note(language, given["model.path"], self.page.workspace, self.page.allowed) if self.code else ""
        return [gr.update(value=told, visible=bool(told)) for _ in self.code]

    # handlers

    def _touched(self, language: str, before: list[str], *values: Any) -> list[Any]:
        return self.updates(language, values, problems=self.problems(values), before=before)

    def _chosen(self, language: str, before: list[str], *values: Any) -> list[Any]:
        return self.updates(language, values, problems=self.problems(values), before=before, chosen=True)

    def _translated(self, language: str, before: list[str], *values: Any) -> list[Any]:
        problems = self.problems(values) if before else ()
        return self.updates(language, values, problems=problems, retell=True)

    def _reset(self, language: str) -> list[Any]:
        return self.updates(language, self.defaults(), fill=True)

    def _kept(self, language: str, kept: list[str], *values: Any) -> list[Any]:
        """Set what was taken off the list of changes back to its default."""
        given = self.read(values)
        mine = [given[s.path] if s.path in kept or not self.active(s, given) else s.default for s in self.settings]
        return self.updates(language, mine, fill=True)

    def _offer(self, setting: Setting) -> Any:
        def offer(value: Any, folder: str | None = None) -> Any:
            found = offers(setting.pick, self.page.workspace, self.page.allowed, str(folder or ""))
            chosen = value if isinstance(value, list) else []
            return gr.update(choices=list(dict.fromkeys([*found, *map(str, chosen)])))

        return offer


def _cards(job: type[Spec], settings: Sequence[Setting]) -> dict[str, tuple[str, ...]]:
    """Return a card for each section; a plain field joins the one before it, those at the beginning the first."""
    tops = list(dict.fromkeys(s.path.partition(".")[0] for s in settings))
    cards: dict[str, tuple[str, ...]] = {}
    waiting: tuple[str, ...] = ()
    for name in tops:
        if any(s.path == name and not s.union for s in settings):
            if cards:
                last = next(reversed(cards))
                cards[last] += (name,)
            else:
                waiting += (name,)
        else:
            cards[name], waiting = (*waiting, name), ()
    return cards
