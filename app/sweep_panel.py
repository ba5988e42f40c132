"""What came of a sweep: a table of its runs, the best first, and their curves in one drawing."""

from __future__ import annotations

from html import escape

from app import show
from app.chart import Bins, Curve, chart, thin
from app.i18n import number, tr
from app.page import Page
from app.queue_panel import figure, label, values_told
from core import runs, sweep
from core.errors import InputError

COLOURS = 8
"""Curves that can be told apart in one drawing; of a larger sweep the best are drawn."""
POINTS = 128


def panel(page: Page, language: str, chosen: str) -> str:
    """Return the table and the curves of the sweep that a run belongs to; "" where it belongs to none."""
    try:
        name = sweep.name_of(runs.find(chosen, page.workspace))
    except InputError:
        return ""
    folders = sweep.members(name, page.workspace) if name else []
    if not folders:
        return ""
    rows, curves = [], dict[str, tuple[Bins, Bins]]()
    for folder in folders:
        with page.watch.view(folder) as view:
            rows.append(sweep.row(view))
            drawn = view.state.curves["smooth"], sweep.judged(view)
            curves[folder.name] = list(thin(drawn[0], POINTS)), list(thin(drawn[1], POINTS))
    ranked = sweep.ranked(rows)
    title = escape(tr(language, "ui.sweep.name", name=name))
    told = escape(tr(language, "ui.sweep.count", n=len(rows)))
    head = f'<div class="tb-status"><h2>{title}</h2><span class="tb-fact">{told}</span></div>'
    drawn = sorted(ranked[:COLOURS], key=lambda row: row.number)  # a run keeps its colour when it overtakes another
    styles = {row.run: f"curve-{place}" for place, row in enumerate(drawn)}
    return head + _table(language, ranked, styles, chosen) + _charts(language, drawn, styles, curves, ranked[0].measure)


def _table(language: str, rows: list[sweep.Row], styles: dict[str, str], chosen: str) -> str:
    keys = list(rows[0].values)
    heads = [tr(language, "ui.runs.run"), *(label(language, key) for key in keys)]
    best = rows[0].measure
    heads += [show.metric(language, best) if best else tr(language, "ui.sweep.best")]
    heads += [tr(language, f"ui.sweep.{key}") for key in ("loss_smooth", "step", "status")]
    last = len(heads) - 1
    top = "".join(f"<th{' class=tb-number' if 0 < i < last else ''}>{escape(h)}</th>" for i, h in enumerate(heads))
    lines = ""
    for row in rows:
        key = f'<span class="tb-key {styles[row.run]}"><i></i></span> ' if row.run in styles else ""
        figures = row.best if row.measure == best else None, row.loss, row.step
        cells = [
            f'<td>{key}<button class="tb-link" data-run="{escape(row.run)}">{escape(row.run)}</button></td>',
            *(f'<td class="tb-number">{escape(figure(language, row.values.get(key)))}</td>' for key in keys),
            *(f'<td class="tb-number">{number(language, value)}</td>' for value in figures),
            f"<td>{show.chip(language, row.status)}</td>",
        ]
        lines += f"<tr{' aria-current=true' if row.run == chosen else ''}>{''.join(cells)}</tr>"
    inner = f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="tb-table" tabindex="0"><table>{inner}</table></div>'


def _charts(
    language: str, rows: list[sweep.Row], styles: dict[str, str], curves: dict[str, tuple[Bins, Bins]], best: str
) -> str:
    """Return the curves of the training loss, and of what the runs are ranked by; best: as for sweep.Row.measure."""
    title = show.metric(language, best) if best else tr(language, "ui.sweep.loss_eval")
    losses = [_curve(language, row, styles, curves[row.run][0]) for row in rows]
    dots = not best or best.startswith(sweep.HELD_OUT)  # few and far between
    judged = [_curve(language, row, styles, curves[row.run][1], dots=dots) for row in rows if row.measure == best]
    told = chart(language, tr(language, "ui.sweep.loss_smooth"), losses) + chart(language, title, judged)
    return f'<div class="tb-compared">{told}</div>' if told else ""


def _curve(language: str, row: sweep.Row, styles: dict[str, str], bins: Bins, *, dots: bool = False) -> Curve:
    return Curve(styles[row.run], values_told(language, row.values), bins, dots=dots)
