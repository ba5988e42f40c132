"""`tuneboard runs`: list, show, log, stop and delete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from app import i18n, jobs, show
from app.cli_follow import phase, problems, result, status, took
from app.cli_speak import Answer, language, note, number, out, plain, say, text
from core import queue, runs
from core.errors import InputError
from core.runs import View

LOG_BYTES = 64 << 10
COLOURS = {"running": "cyan", "done": "green", "stopped": "yellow"} | dict.fromkeys(
    ("failed", "nan", "out_of_memory", "killed", "lost"), "red"
)


def list_(workspace: Path, answer: Answer) -> None:
    """Print a table of all runs, newest first."""
    views = [runs.look(folder) for folder in runs.listed(workspace)]
    answer.fields["runs"] = [_row(view) for view in views]
    if not views:
        note(say("runs.none", folder=str(workspace)))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("name", "job", "state", "began", "time", "step", "loss"):
        side = "right" if name in ("time", "step", "loss") else "left"
        table.add_column(say(f"runs.{name}"), justify=side, no_wrap=name != "name", overflow="fold")
    for view in views:
        table.add_row(*_cells(view), style=COLOURS.get(view.status))
    answer.show(table)
    if queue.asleep(workspace):
        note(say("runs.asleep"), style="yellow")


def show_(folder: Path, answer: Answer) -> None:
    """Print what there is to know of one run."""
    view = runs.look(folder)
    answer.fields |= result(view) | {"settings": jobs.settings(folder).model_dump(mode="json")}
    if answer.as_json:
        return
    facts = {"state": phase(view), "folder": str(folder), "time": took(view), "step": _steps(view), "loss": _loss(view)}
    for key, value in facts.items():
        out(f"{say(f'runs.{key}')}: {value}")
    for problem in problems(view):
        out(f"{problem.code}  {text(problem)}")
    out("\n" + (folder / "run.yaml").read_text(encoding="utf-8").rstrip())


def log(folder: Path, answer: Answer) -> None:
    """Print the end of the raw output of a run."""
    path = folder / "console.log"
    lines = plain(_tail(path)) if path.exists() else ""
    answer.fields |= {"run": str(folder), "log": lines}
    answer.show(lines.rstrip() or say("runs.no_log"))


def stop(folder: Path, answer: Answer) -> None:
    """Ask a run to save its work and end; asked again while it does, it ends at once."""
    runs.stop(folder)
    view = runs.look(folder)
    answer.fields |= result(view)
    note(say("runs.stopped", run=folder.name, status=status(view.status)))


def delete(folder: Path, answer: Answer) -> None:
    """Remove a run and all it made."""
    runs.delete(folder)
    answer.fields |= {"run": str(folder), "status": "deleted"}
    note(say("runs.deleted", run=folder.name))


ACTIONS: dict[str, Callable[[Path, Answer], None]] = {
    "list": list_,
    "show": show_,
    "log": log,
    "stop": stop,
    "delete": delete,
}


def _row(view: View) -> dict[str, Any]:
    facts = {"name": view.name, "position": view.position, "started": view.state.started}
    return result(view) | facts | {"loss": show.last_loss(view)}


def _cells(view: View) -> list[str]:
    began = i18n.moment(language(), view.state.started) if view.state.started else i18n.ABSENT
    state = f"{status(view.status)} {number(view.position)}" if view.position else status(view.status)
    return [view.name, _job(view.folder), state, began, took(view), _steps(view), _loss(view)]


def _job(folder: Path) -> str:
    try:
        return i18n.tr(language(), f"job.{jobs.settings(folder).kind}.label")
    except InputError:
        return i18n.ABSENT  # written by another version


def _steps(view: View) -> str:
    return f"{number(view.state.step)}/{number(view.state.total)}" if view.state.total else i18n.ABSENT


def _loss(view: View) -> str:
    return number(show.last_loss(view))


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read().decode("utf-8", "replace")
