"""`tuneboard queue`, `tuneboard train --queue` and `--sweep`: what waits, in which order, and what came of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from app import jobs, show
from app.cli_follow import status
from app.cli_options import Json, Place, RemoteCode, option, room
from app.cli_speak import Answer, answering, language, note, number, say
from app.i18n import tr
from core import config, queue, runs, slots, sweep
from core.errors import InputError

ACTIONS = ("list", "add", "move", "drop", "pause", "continue")
LAST = 1_000_000
"""A place beyond the end of every queue."""


def enqueue(layers: Sequence[Mapping[str, Any]], swept: Sequence[str], workspace: Path, answer: Answer) -> None:
    """Make one run, or one for each combination of the values of a sweep, and let them wait for a device."""
    kind = config.merge(*layers).get("kind", "train")
    if kind != "train":
        raise InputError("config.job", "kind", given=str(kind), known="train")
    if swept:
        axes = sweep.axes([(key.strip(), text) for key, _, text in (word.partition("=") for word in swept)])
        folders = sweep.make(sweep.cells(axes, *layers), workspace)
        answer.fields["sweep"] = sweep.name_of(folders[0])
    else:
        folders = [jobs.enqueue(config.run(*layers), workspace)]
    answer.fields["runs"] = [{"run": str(folder), "values": sweep.values_of(folder)} for folder in folders]
    for folder in folders:
        answer.show("  ".join([folder.name, *told(sweep.values_of(folder))]))
    note(say("queue.added", n=len(folders)))


def queue_(
    what: Annotated[str, typer.Argument(metavar="|".join(ACTIONS), help=say("option.what"))] = "list",
    name: Annotated[str, typer.Argument(metavar="RUN", help=say("option.name"))] = "",
    to: Annotated[str, typer.Argument(metavar="up|down|first|last|1", help=say("option.queue_place"))] = "first",
    on_error: Annotated[Literal["continue", "stop"] | None, option("on_error", "--on-error")] = None,
    at_once: Annotated[int | None, option("at_once", "--at-once", min=1, max=queue.MOST)] = None,
    place: Place = None,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    with answering(as_json) as answer:
        if what not in ACTIONS:
            raise InputError("cli.action", given=what, known=", ".join(ACTIONS))
        workspace = room(place)
        changes = {"on_error": on_error, "at_once": at_once}
        if given := {key: value for key, value in changes.items() if value is not None}:
            queue.rule(workspace, **given)
        if what in ("add", "move", "drop"):
            folder = runs.find(name, workspace)
            if what == "add":
                queue.add([folder], workspace)
            elif what == "move":
                queue.move(folder, _place(to, folder))
            else:
                queue.drop(folder)
        elif what != "list":
            (queue.pause if what == "pause" else queue.go_on)(workspace)
        queue.wake(workspace)
        _list(workspace, answer)


def told(values: Mapping[str, Any]) -> list[str]:
    """Return the values of a run of a sweep as `tuner.rank=8`."""
    return [f"{key}={value}" for key, value in values.items()]


def table(name: str, workspace: Path, answer: Answer) -> None:
    """Print what came of a sweep, the best run first; name: the sweep, or any run of it."""
    found = sweep.members(name, workspace) or sweep.members(sweep.name_of(runs.find(name, workspace)), workspace)
    if not found:
        raise InputError("sweep.unknown", run=name[:80])
    rows = sweep.ranked(sweep.row(runs.look(folder)) for folder in found)
    answer.fields |= {"sweep": sweep.name_of(found[0]), "runs": [asdict(row) for row in rows]}
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column(say("runs.name"))
    for key in (keys := list(rows[0].values)):
        shown.add_column(key, justify="right", no_wrap=True)
    for head in (say("runs.state"), say("runs.step"), tr(language(), "ui.sweep.loss_smooth")):
        shown.add_column(head, justify="left" if head == say("runs.state") else "right", no_wrap=True)
    best = rows[0].measure
    shown.add_column(show.metric(language(), best) if best else say("runs.best"), justify="right", no_wrap=True)
    for row in rows:
        figures = number(row.step), number(row.loss), number(row.best if row.measure == best else None)
        shown.add_row(row.run, *(number(row.values.get(key)) for key in keys), status(row.status), *figures)
    answer.show(shown)


def _list(workspace: Path, answer: Answer) -> None:
    """Print what runs, what waits, and by which rules."""
    rules, busy, waiting = queue.rules(workspace), slots.taken(workspace), list(runs.waiting(workspace))
    answer.fields |= {"waiting": [folder.name for folder in waiting], "busy": busy, **rules.model_dump()}
    for slot, names in busy.items():
        answer.show(say("queue.busy", device=slot, runs=", ".join(names)))
    for place, folder in enumerate(waiting, start=1):
        answer.show("  ".join([f"{number(place):>3}", folder.name, *told(sweep.values_of(folder))]))
    if not waiting:
        note(say("queue.empty"))
    if rules.paused:
        note(say("queue.paused_by", run=rules.because) if rules.because else say("queue.paused"), style="yellow")
    note(say(f"queue.on_error_{rules.on_error}") + " " + say("queue.at_once", n=rules.at_once))


def _place(to: str, folder: Path) -> int:
    """Return the number of the place that `up`, `down`, `first`, `last` or a number means for a run."""
    now = runs.look(folder).position
    words = {"up": max(now - 1, 1), "down": now + 1, "first": 1, "last": LAST}
    if to in words:
        return words[to]
    if not to.isdecimal() or not 0 < int(to) <= LAST:
        raise InputError("queue.place", given=to[:20])
    return int(to)
