"""A run in words and pictures: its head line, phase, problems, curves and log, as HTML in the reader's language."""

from __future__ import annotations

import re
import time
from html import escape
from pathlib import Path
from typing import Any

from babel.dates import format_timedelta

from app.chart import Curve, chart, small, thin
from app.i18n import ABSENT, duration, known, message, number, size, tr
from core.errors import Problem
from core.runs import RESUMABLE, View

LOOKS = {
    "queued": "queued", "starting": "running", "running": "running", "stopping": "running", "done": "done",
    "stopped": "stopped", "failed": "failed", "out_of_memory": "failed", "nan": "failed", "killed": "killed",
    "lost": "killed",
}  # fmt: skip
"""Status -> the chip's class in the style sheet."""
LOG_BYTES, LOG_LINES = 32 << 10, 200
CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
"""Colours and cursor movements of a terminal, and characters that a page cannot show."""
POINTS, FEW_POINTS = 256, 64
EVAL_STYLES = 4
"""Ways to draw the curve of an evaluation set."""
OWN = {"rewards/chosen", "rewards/rejected", "eval rewards/chosen", "eval rewards/rejected"}
"""Curves that have a place of their own; the others are what a stage tells beside its loss."""
COUNTS = ("rows", "held_out", "trainable", "parameters", "subject")
"""What the words for a phase may speak of; a run of another version may not tell all of it."""


def chip(language: str, status: str) -> str:
    """Return the state of a run as an icon and a word."""
    look = f" tb-chip-{LOOKS[status]}" if status in LOOKS else ""
    return f'<span class="tb-chip{look}">{escape(tr(language, f"ui.status.{status}"))}</span>'


def seconds(view: View) -> float | None:
    """Return how long a run has taken up to now or up to its end; None before it began."""
    began = view.state.started
    if began is None:
        return None
    return (view.exit.get("ended") or (time.time() if view.active else view.state.updated or began)) - began


def head(language: str, view: View) -> str:
    """Return the first lines of the panel: name, state, step, time left, pace, progress bar, phase, problems."""
    state, facts = view.state, []
    if state.total:
        key = "ui.live.step" if state.job == "train" else "ui.live.item"
        facts.append(tr(language, key, step=number(language, state.step), total=number(language, state.total)))
    if view.active and state.eta is not None:
        facts.append(tr(language, "ui.live.left", time=duration(language, state.eta)))
    elif (took := seconds(view)) is not None:
        facts.append(tr(language, "ui.live.so_far" if view.active else "ui.live.took", time=duration(language, took)))
    if view.active and isinstance(speed := state.last.get("tokens_per_second"), int | float):
        facts.append(tr(language, "ui.live.speed", speed=number(language, float(speed))))
    told = "".join(f'<span class="tb-fact">{escape(fact)}</span>' for fact in facts)
    title = f'<div class="tb-status"><h2>{escape(view.name)}</h2>{chip(language, view.status)}{told}</div>'
    return (
        title + bar(language, view) + f'<p class="tb-phase">{escape(phase(language, view))}</p>' + notes(language, view)
    )


def bar(language: str, view: View) -> str:
    """Return the progress bar: no value, and so moving, while it is not known how far a run is."""
    state, label = view.state, escape(tr(language, "ui.live.progress"))
    if view.status == "done":
        return f'<progress class="tb-bar" aria-label="{label}" max="1" value="1"></progress>'
    if state.total:
        return f'<progress class="tb-bar" aria-label="{label}" max="{state.total}" value="{state.step}"></progress>'
    return f'<progress class="tb-bar" aria-label="{label}"{"" if view.active else " max=1 value=0"}></progress>'


def phase(language: str, view: View) -> str:
    """Return what a run is doing now, in words; what came of it when it has ended."""
    state = view.state
    if view.status == "running" and state.phase:
        told = {k: number(language, v) if isinstance(v, int) else v for k, v in state.phase_params.items()}
        return tr(language, f"message.phase.{state.phase}", **dict.fromkeys(COUNTS, ABSENT) | told)
    if view.status == "done" and state.job == "train" and isinstance(loss := last_loss(view), int | float):
        return tr(language, "ui.live.ended_loss", loss=number(language, float(loss)))
    if view.status == "stopped" and state.job == "train" and not state.step:
        return tr(language, "ui.live.stopped_early")
    if view.status == "queued":
        return tr(language, "ui.live.queued", place=number(language, view.position))
    return tr(language, f"ui.live.{view.status}")


def last_loss(view: View) -> float | None:
    """Return the loss of the training that was told last, as it is; None where there is none, or it was no number."""
    return view.state.last.get("loss")


def problem(view: View) -> Problem | None:
    """Return what went wrong with a run, by its last error event or by how it ended."""
    if view.active or view.status in ("done", "stopped", "new", "queued"):
        return None
    if event := view.state.error:
        return Problem(event["code"], event.get("place", ""), event.get("params", {}))
    if view.status == "out_of_memory":
        return Problem("end.killed_memory", "", {"peak": size("en", view.exit.get("peak_bytes", 0))})
    early = "" if view.resumable else "_early"
    if view.status == "killed" and "processes" in view.exit:  # the first of several, else another would have told
        facts = {"rank": view.exit.get("rank"), "size": view.exit["processes"]}
        return Problem(f"rank.died{early}", "", facts | {"signal": view.exit.get("signal")})
    if view.status == "killed":
        return Problem(f"end.killed{early}", "", {"signal": view.exit.get("signal")})
    if view.status == "lost":
        return Problem(f"end.lost{early}")
    return Problem("engine.failed", "", {"what": f"exit status {view.exit.get('status')}"})


def onward(view: View) -> str:
    """Return the key of the word on the button that goes on with a training run; "" where there is none.

    Without a checkpoint it begins anew, and one whose loss broke before the first would break again.
    """
    if view.state.job not in ("", "train") or view.status not in RESUMABLE:
        return ""
    if view.resumable:
        return "ui.live.resume"
    return "" if view.status == "nan" else "ui.live.restart"


def notes(language: str, view: View) -> str:
    """Return the error that ended a run and its warnings, each with the way out."""
    shown = []
    if found := problem(view):
        shown.append(_note(language, "error", found.code, found.place, found.params))
    told: dict[str, dict[str, Any]] = {
        message(language, w["code"], w.get("params", {})): w for w in view.state.warnings
    }
    shown += [
        _note(language, "warning", w["code"], w.get("place", ""), w.get("params", {})) for w in list(told.values())[-3:]
    ]
    return "".join(shown)


def _note(language: str, kind: str, code: str, place: str, params: dict[str, Any]) -> str:
    where = f" <code>{escape(place)}</code>" if place else ""
    role = "alert" if kind == "error" else "status"
    name, text = escape(tr(language, f"ui.live.{kind}")), escape(message(language, code, params))
    return f'<div class="tb-{kind}" role="{role}"><strong>{name}</strong> {text}{where}</div>'


def charts(language: str, view: View) -> str:
    """Return the curves of a training run; while there is no point yet, an empty frame that says so."""
    curves = view.state.curves
    loss = [
        Curve(
            "curve-raw", tr(language, "ui.live.loss_raw"), thin(curves["loss"], POINTS), band=curves["loss"].width > 1
        ),
        Curve("curve-smooth", tr(language, "ui.live.loss_smooth"), thin(curves["smooth"], POINTS)),
    ]
    for place, (name, series) in enumerate(view.state.eval_curves.items()):
        style = f"curve-eval curve-eval-{place % EVAL_STYLES}"
        loss.append(Curve(style, name or tr(language, "ui.live.loss_eval"), thin(series, FEW_POINTS), dots=True))
    big = chart(language, tr(language, "ui.live.loss"), loss)
    if not big:
        return f'<div class="tb-empty-chart">{escape(tr(language, "ui.live.no_points"))}</div>' if view.active else ""
    rewards = [
        Curve("curve-smooth", tr(language, "ui.live.chosen"), thin(curves["rewards/chosen"], POINTS)),
        Curve("curve-eval", tr(language, "ui.live.rejected"), thin(curves["rewards/rejected"], POINTS)),
    ] if {"rewards/chosen", "rewards/rejected"} <= curves.keys() else []  # fmt: skip
    big += chart(language, tr(language, "ui.live.rewards"), rewards)
    told = "".join(
        small(language, metric(language, name), _plain(language, series.bins[-1][1]), thin(series, FEW_POINTS))
        for name, series in view.state.metric_curves.items()
        if name not in OWN
    )
    units = {"lr": _plain, "grad_norm": _plain, "tokens_per_second": _plain, "memory": size}
    smalls = "".join(
        small(
            language,
            tr(language, f"ui.live.{name}"),
            unit(language, curves[name].bins[-1][1]),
            thin(curves[name], FEW_POINTS),
        )
        for name, unit in units.items()
        if curves[name].bins
    )
    return f'{big}<div class="tb-smalls">{told}{smalls}</div>'


def metric(language: str, name: str) -> str:
    """Return the name of what a stage tells beside its loss, of the rows that learn or of those held out."""
    bare = name.removeprefix("eval ")
    key = f"ui.metric.{bare.replace('/', '_')}"
    word = tr(language, key)
    word = bare if word == key else word
    return word if bare == name else tr(language, "ui.live.of_held_out", name=word)


def _plain(language: str, value: float) -> str:
    return number(language, float(value))


def log_tail(folder: Path) -> str:
    """Return the last lines of what the engine printed, as a page can show them."""
    try:
        with (folder / "console.log").open("rb") as log:
            end = log.seek(0, 2)
            log.seek(max(0, end - LOG_BYTES))
            text = log.read(LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    # A progress bar rewrites its line: what stands after the last return is what a terminal would show.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in CONTROL.sub("", text).split("\n")]
    return "\n".join(lines[-LOG_LINES:]).strip("\n")


def log_size(folder: Path) -> int:
    try:
        return (folder / "console.log").stat().st_size
    except OSError:
        return 0


def when(language: str, view: View) -> str:
    """Return how long ago a run began, in words."""
    if view.state.started is None:
        return ABSENT
    return format_timedelta(
        min(-1, round(view.state.started - time.time())), add_direction=True, locale=known(language)
    )
