"""Evaluate: base and tuned models answer a set; a table of measures, and every answer beside its reference."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from app import jobtab
from app.answers import BASE, FILTERS, SHOWN, best, measured, rows, tally
from app.form import Form
from app.i18n import number, tr
from app.jobtab import Bench
from app.page import QUIET, Page
from core import config, runs
from core.errors import InputError
from core.runs import View

KEY, ORDER = "evaluate", 20
PAGE_ROWS = 10
CARDS = {"tuned": ("tuned", "model"), "evaluated": ("evaluated",), "generation": ("generation",),
         "hardware": ("hardware",)}  # fmt: skip


def build(page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and wire it."""
    with gr.Row(elem_classes=["tb-workbench"]):
        form, start, stop = jobtab.form_part(
            page, KEY, lambda: Form(page, config.Evaluation, skip=("name",), cards=CARDS)
        )
        with gr.Column(elem_classes=["tb-live"]):
            shown, progress = jobtab.shown_part(page, KEY)
            measures = gr.HTML(elem_id="tb-evaluate-table", visible=False)
            wanted = gr.Radio(list(FILTERS), value="all", visible=False, elem_id="tb-evaluate-filter")
            page.say(wanted, label="ui.evaluate.filter")
            answers = gr.HTML(elem_id="tb-evaluate-answers", visible=False)
            with gr.Row(elem_classes=["tb-pager"], visible=False, elem_id="tb-evaluate-pager") as pager:
                back = page.say(gr.Button(size="sm", elem_id="tb-evaluate-back"), value="ui.evaluate.back")
                place = gr.HTML(elem_classes=["tb-muted"])
                onward = page.say(gr.Button(size="sm", elem_id="tb-evaluate-onward"), value="ui.evaluate.onward")
            at = gr.State(0)
    bench = Bench(form, start, stop, shown, progress, gr.Timer(jobtab.TICK_SECONDS, active=False))
    table = [answers, place, back, onward, at]
    jobtab.wire(page, KEY, bench, lambda language, view: _result(page, language, view),
                [measures, wanted, pager, *table])  # fmt: skip
    jobtab.follow_base(page, form, "tuned")
    jobtab.follow_wish(page, form, "tuned", tab)

    def turn(steps: int):
        def to(language: str, name: Any, filter_: Any, first: int) -> list[Any]:
            return _answers(page, language, str(name), str(filter_), first + steps * PAGE_ROWS if steps else 0)

        return to

    state = [page.language, shown, wanted, at]
    wanted.input(turn(0), state, table, **QUIET)
    back.click(turn(-1), state, table, **QUIET)
    onward.click(turn(1), state, table, **QUIET)


def _result(page: Page, language: str, view: View | None) -> Sequence[Any]:
    """Return the updates of the result of an evaluation: measures, filter, pager and the first page of answers."""
    metrics = measured(view.folder) if view else {}
    if view is None or not metrics:
        hidden = gr.update(visible=False)
        return [hidden, hidden, hidden, hidden, *[gr.update()] * 3, 0]
    counts = tally(view.folder)
    choices = [(f"{tr(language, f'ui.evaluate.{name}')} ({number(language, counts[name])})", name) for name in FILTERS]
    return [
        gr.update(value=_measures(language, metrics), visible=True),
        gr.update(choices=choices, value="all", visible=True),
        gr.update(visible=True),
        *_answers(page, language, view.name, "all", 0),
    ]


def _measures(language: str, metrics: dict[str, dict[str, float | None]]) -> str:
    """Return the table of measures: a row for each model, the best of each column marked, the change from the base."""
    winners = {metric: best(metrics, metric) for metric in SHOWN}
    shown = [metric for metric in SHOWN if any(metric in row for row in metrics.values())]
    head = "".join(f'<th class="tb-number">{_say(language, f"metric.{metric}")}</th>' for metric in shown)
    body = ""
    for name, row in metrics.items():
        cells = "".join(_measure(language, metrics[BASE], row, metric, name in winners[metric]) for metric in shown)
        label = _say(language, "base") if name == BASE else escape(name)
        body += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    corner = _say(language, "model")
    table = f"<thead><tr><th>{corner}</th>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="tb-table"><table>{table}</table></div>'


def _measure(language: str, base: dict[str, Any], row: dict[str, Any], metric: str, wins: bool) -> str:
    value, before = row.get(metric), base.get(metric)
    extra = ""
    if row is not base and value is not None and before is not None:
        sign = "+" if value > before else "−" if value < before else "±"
        extra = f'<small class="tb-delta">{sign}{number(language, abs(value - before))}</small>'
    mark = f'<small class="tb-best">✓ {_say(language, "best")}</small>' if wins else ""
    return f'<td class="tb-number"><span>{number(language, value)}</span>{extra}{mark}</td>'


def _answers(page: Page, language: str, name: str, wanted: str, first: int) -> list[Any]:
    """Return the updates of the table of answers: one page of one filter, and where that is."""
    try:
        folder = runs.find(name, page.workspace)
    except InputError:
        return [gr.update(visible=False), "", *[gr.update(interactive=False)] * 2, 0]
    wanted = wanted if wanted in FILTERS else "all"
    total = tally(folder)[wanted]
    first = max(0, min(first, (total - 1) // PAGE_ROWS * PAGE_ROWS))
    found = rows(folder, wanted, first, PAGE_ROWS)
    span = tr(language, "ui.evaluate.span", first=first + 1, last=first + len(found), total=number(language, total))
    return [
        gr.update(value=_table(language, found) if found else f"<p>{_say(language, 'none')}</p>", visible=True),
        span if found else "",
        gr.update(interactive=first > 0),
        gr.update(interactive=first + PAGE_ROWS < total),
        first,
    ]


def _table(language: str, found: list[dict[str, Any]]) -> str:
    """Return a page of answers. What the models said is text, never markup."""
    names = list(found[0]["answers"])
    labels = [_say(language, "question"), _say(language, "reference")]
    labels += [_say(language, "base") if name == BASE else escape(name) for name in names]
    head = "".join(f"<th>{label}</th>" for label in ["#", *labels])
    body = ""
    for row in found:
        texts = [_text(row["prompt"]), _text(row["reference"])]
        texts += [_mark(language, row["exact"][name]) + _text(row["answers"][name]) for name in names]
        cells = "".join(f'<td data-label="{label}">{text}</td>' for label, text in zip(labels, texts, strict=True))
        body += f"<tr><td>{row['index'] + 1}</td>{cells}</tr>"
    return f'<div class="tb-table tb-answers"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    return f'<div class="tb-text" dir="auto">{escape(text)}</div>'


def _mark(language: str, right: bool) -> str:
    kind = "right" if right else "miss"
    return f'<span class="tb-{kind}">{"✓" if right else "✕"} {_say(language, kind)}</span>'


def _say(language: str, key: str) -> str:
    return escape(tr(language, f"ui.evaluate.{key}"))
