"""Start a job and follow it in the terminal to its end. Ctrl-C stops it with its work kept, a second one at once."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from app import i18n, jobs, show
from app.cli_speak import STATUS, Answer, console, language, note, number, say
from core import config, runs
from core.errors import Problem
from core.runs import View

BAD_INPUT = 2
"""Exit code of InputError."""
POLL_SECONDS = 0.2
PLAIN_SECONDS = 10.0
"""Between two lines where stderr is no terminal and a bar can't be redrawn."""


def start(job: config.Job, workspace: Path, answer: Answer) -> Path:
    """Create and launch the run of a job; return its folder."""
    folder = jobs.start(job, workspace)
    answer.fields |= {"job": job.kind, "run": str(folder)}
    note(say("started", run=folder.name, folder=str(folder)))
    return folder


def finish(folder: Path, detach: bool, answer: Answer) -> View:
    """Follow a run to its end, or only look at it; put what came of it into the answer."""
    view = runs.look(folder) if detach else follow(folder)
    answer.fields |= result(view)
    if detach:
        note(say("detached", run=folder.name))
        return view
    answer.status, answer.errors = exit_code(view), problems(view)
    for warning in view.state.warnings:
        note(i18n.message(language(), warning.get("code", ""), warning.get("params", {})), style="yellow")
    ended = say("ended", run=view.name, status=status(view.status), time=took(view))
    note(ended, style="green" if answer.status == 0 else "red")
    # what was given wrong stays wrong: such a run can only be begun anew
    if view.status in runs.RESUMABLE and view.state.job == "train" and answer.status != BAD_INPUT:
        note(_onward(view))
    return view


def _onward(view: View) -> str:
    """Return how to go on with a run that has ended early; one that broke before its first checkpoint would again."""
    job = jobs.settings(view.folder)
    if view.status != "nan" or view.resumable or not isinstance(job, config.Run):
        return say("resume" if view.resumable else "restart", run=view.name)
    settings = shlex.quote(str(view.folder / "run.yaml"))
    if (view.state.error or {}).get("code") == "loss.never_finite":  # whatever the rate is
        return say("mended", settings=settings)
    return say("anew", settings=settings, rate=f"{job.optimizer.learning_rate / 10:g}")


def follow(folder: Path) -> View:
    """Show the progress of a run until it ends; return its last view."""
    screen = console()
    with _bar(screen) as bar:
        task, view, spoken = bar.add_task("", total=None, facts=""), None, ("", 0.0)
        while view is None or view.active or view.status == "new":
            try:
                view = runs.look(folder, view)
                bar.update(task, **_shown(view))
                spoken = _speak(screen, view, spoken)
                time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                runs.stop(folder)
                note(say("stopping"), style="yellow")
        bar.update(task, **_shown(runs.look(folder, view)))
    return view


def result(view: View) -> dict[str, Any]:
    """Return what a run has come to, for --json."""
    state = view.state
    metrics = (state.end or {}).get("metrics", {})
    shown = {"job": state.job, "run": str(view.folder), "status": view.status, "step": state.step, "total": state.total}
    return {key: value for key, value in shown.items() if value != ""} | {"metrics": metrics}


def exit_code(view: View) -> int:
    """Return the exit code that tells how a run ended: the category of its error, 1 where there is none."""
    if view.status in STATUS:
        return STATUS[view.status]
    code = view.exit.get("status", 1)
    return code if code in (2, 14) else 1


def problems(view: View) -> list[Problem]:
    """Return what went wrong in a run, by its last error event or by how it ended."""
    found = show.problem(view)
    return [found] if found else []


def status(name: str) -> str:
    """Return the name of a state in the language of the terminal."""
    return i18n.tr(language(), f"ui.status.{name}")


def took(view: View) -> str:
    """Return how long a run has taken, as text."""
    return i18n.duration(language(), show.seconds(view))


def phase(view: View) -> str:
    """Return what a run is doing now, in the few words that fit before a bar: what stands before a colon."""
    told = show.phase(language(), view) if view.status == "running" else status(view.status)
    return re.split("[:：]", told)[0]


def _bar(screen: Console) -> Progress:
    columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=30)]
    return Progress(*columns, TextColumn("{task.fields[facts]}", markup=False), console=screen, transient=True)


def _shown(view: View) -> dict[str, Any]:
    """Return the fields of the bar: what it does, how far it is, the newest numbers."""
    state = view.state
    return {
        "description": phase(view),
        "total": state.total or None,
        "completed": state.step if state.total else 0,
        "facts": "  ".join(_facts(view)),
    }


def _facts(view: View) -> list[str]:
    state, facts = view.state, []
    if state.total:
        facts.append(f"{number(state.step)}/{number(state.total)}")
    last = state.last
    named = {"loss": last.get("loss"), "eval": state.evals.get("loss"), "pace": last.get("tokens_per_second")}
    facts += [say(f"fact.{key}", value=number(value)) for key, value in named.items() if value is not None]
    if state.eta is not None:
        facts.append(say("fact.eta", value=i18n.duration(language(), state.eta)))
    return facts


def _speak(screen: Console, view: View, before: tuple[str, float]) -> tuple[str, float]:
    """Where there is no terminal: print a line when the phase changes and now and then; return what was said when."""
    doing, now = phase(view), time.monotonic()
    if screen.is_terminal or (doing == before[0] and now - before[1] < PLAIN_SECONDS):
        return before
    note("  ".join([doing, *_facts(view)]))
    return doing, now
