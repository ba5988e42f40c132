"""Small grids: one training run for each combination of a few values, made together and put into the queue.

Each run tells in `sweep.json` which sweep it belongs to and what is its own; the folders are the truth here, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from core import config, preflight, queue, runs, yamls
from core.errors import InputError, Problem
from core.files import read_json, write_json
from core.runs import View
from core.series import Series

FILE = "sweep.json"
MOST = 64
"""Runs of one sweep."""
NAME_LENGTH = 60
HELD_OUT = "eval "
"""What the names of curves of held-out rows begin with (events.RunState)."""

Axes = dict[str, list[Any]]
"""Key of a setting -> the values that it takes."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep that is to be made."""

    values: dict[str, Any]
    job: config.Run


def axes(given: Sequence[tuple[str, str]]) -> Axes:
    """Return the axes of (key, its values as one text): `1e-4, 3e-4`, or `[a], [a, b]` for a setting that is a list.

    Raises InputError for what is no list of values, and for more than MOST runs in all.
    """
    found: Axes = {}
    for key, text in given:
        values = yamls.value(f"[{text}]", key)
        unlike = {repr(value): value for value in values if value is not None} if isinstance(values, list) else {}
        if not key or not unlike:
            raise InputError("sweep.empty")
        if key == "name":
            raise InputError("sweep.name")
        if key in found:
            raise InputError("sweep.twice", key=key)
        found[key] = list(unlike.values())
    if not found:
        raise InputError("sweep.empty")
    if (cells := math.prod(map(len, found.values()))) > MOST:
        raise InputError("sweep.too_many", cells=cells, most=MOST)
    return found


def cells(axes: Axes, *layers: Mapping[str, Any]) -> list[Cell]:
    """Return every combination laid over the layers and resolved, the last axis changing fastest.

    Raises InputError for the first that does not resolve: which values, then what is wrong with them.
    """
    found = []
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        try:
            job = config.run(*layers, *(config.nest({key: value}) for key, value in cell.items()))
        except InputError as error:
            if not _blamed(cell, error):
                config.run(*layers)  # what is wrong without the sweep, too, is told as it is
            raise bad(cell, error) from None
        dumped = job.model_dump(mode="json")
        found.append(Cell({key: _value(dumped, key) for key in cell}, job))
    return found


def make(cells: Sequence[Cell], workspace: Path) -> list[Path]:
    """Make the runs of a sweep and put them into the queue; return their folders, numbered from 1.

    Raises InputError for what can be seen to be wrong with any of them; nothing is made then.
    """
    for cell in cells:
        try:
            preflight.check(cell.job, workspace)
        except InputError as error:
            raise bad(cell.values, error) from None
    with queue.edited(workspace):
        base, folders = _base(cells[0].job.name, len(cells), workspace), []
        for number, cell in enumerate(cells, start=1):
            folder = runs.create(cell.job.model_copy(update={"name": f"{base}-{number}"}), workspace)
            write_json(folder / FILE, {
                "sweep": base, "number": number, "values": cell.values, "measure": _measure(cell.job),
            })  # fmt: skip
            folders.append(folder)
    queue.add(folders, workspace)
    return folders


def _measure(job: config.Run) -> str:
    """Return the curve that a run is ranked by: that of the rows that learn where none are held out."""
    held_out = job.data.eval or (job.data.eval_share and not job.data.streaming)
    return job.stage.measure if held_out else job.stage.measure.removeprefix(HELD_OUT)


@dataclass(frozen=True)
class Row:
    """What has come of one run of a sweep by now."""

    run: str
    number: int
    values: dict[str, Any]
    status: str
    step: int
    loss: float | None
    """The last loss of the training, smoothed."""
    best: float | None
    """The lowest loss on held-out rows; or what its stage goes by: of the saved weights, or the smoothed last one."""
    held_out: float | None = None
    """The lowest loss on held-out rows."""
    measure: str = ""
    """The curve that its stage goes by, the higher the better; "" where it goes by the loss."""


def row(view: View) -> Row:
    """Return the line of a run in the table of its sweep."""
    mark, curves = read_json(view.folder / FILE), view.state.curves
    measure = mark.get("measure", "")
    loss = curves["smooth"].bins[-1][1] if curves["smooth"].bins else None
    held_out = min((lowest for _, _, lowest, _ in _losses(view).bins), default=None)
    best = _end(view, measure) if measure else held_out
    given = mark.get("number", 0), mark.get("values", {})
    return Row(view.name, *given, view.status, view.state.step, loss, best, held_out, measure)


def judged(view: View) -> Series:
    """Return the curve by which a run of a sweep is ranked."""
    measure = read_json(view.folder / FILE).get("measure", "")
    return view.state.curves.get(measure, Series()) if measure else _losses(view)


def _losses(view: View) -> Series:
    """Return the losses on the first set of held-out rows, as for the best model."""
    return next(iter(view.state.eval_curves.values()), Series())


def _end(view: View, measure: str) -> float | None:
    """Return the end of a curve, smoothed as that of the training loss is; of held-out rows what the saved weights got.

    These may be of an earlier step (watching.best).
    """
    curve = judged(view)
    if not curve.bins:
        return None
    if measure.startswith(HELD_OUT):
        saved = [one["step"] for one in view.state.saved if one["what"] in ("adapter", "model")]
        return curve.until(saved[-1] if saved else math.inf)
    return reduce(lambda smooth, value: 0.8 * smooth + 0.2 * value, (mean for _, mean, _, _ in curve.bins))


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Return the lines of a table, the best first.

    By what their stage goes by, which is the lowest held-out loss where it names nothing; then by the lowest held-out
    loss, then by the training loss.
    """

    def rank(row: Row) -> tuple[float, ...]:
        losses = (math.inf if loss is None else loss for loss in (row.held_out, row.loss))
        best = math.inf if row.best is None else -row.best if row.measure else row.best
        return not row.measure, best, *losses, row.number

    return sorted(rows, key=rank)


def name_of(folder: Path) -> str:
    """Return the sweep that a run belongs to, "" for none."""
    return str(read_json(folder / FILE).get("sweep", ""))


def values_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a run that are its own within its sweep."""
    return dict(read_json(folder / FILE).get("values", {}))


def members(name: str, workspace: Path) -> list[Path]:
    """Return the folders of the runs of a sweep that are still there, by number."""
    told = ((read_json(path), path.parent) for path in (workspace / "runs").glob(f"*/{FILE}"))
    mine = ((mark.get("number", 0), folder) for mark, folder in told if mark.get("sweep") == name)
    return [folder for _, folder in sorted(mine)]


def bad(cell: Mapping[str, Any], error: InputError) -> InputError:
    """Return the error of a combination, with the values that are to blame in front, or all where none alone is."""
    told = ", ".join(f"{key}={cell[key]}" for key in _blamed(cell, error) or cell)
    return InputError("", problems=(Problem("sweep.cell", "", {"cell": told}), *error.problems))


def _blamed(cell: Mapping[str, Any], error: InputError) -> list[str]:
    """Return the keys of a combination that some problem is at."""
    places = [problem.place.split(".") for problem in error.problems]
    return [key for key in cell if any(_is_at(key.split("."), place) for place in places)]


def _is_at(key: Sequence[str], place: Sequence[str]) -> bool:
    """Say whether tuner.rank is meant by the place tuner.lora.rank."""
    rest = iter(place)
    return key[-1] == place[-1] and all(part in rest for part in key)


def _value(dumped: Any, key: str) -> Any:
    """Return a value as it was resolved; of a choice its kind."""
    for part in key.split("."):
        dumped = dumped[part]
    return dumped["kind"] if isinstance(dumped, dict) and "kind" in dumped else dumped


def _base(name: str, count: int, workspace: Path) -> str:
    """Return the name of a sweep whose numbered runs are all free: as asked, else with a number of its own."""
    slug = runs.slug(name, "sweep")[: NAME_LENGTH - 2 * len(str(MOST)) - 2]
    for number in itertools.count(1):
        base = slug if number == 1 else f"{slug}-{number}"
        used = any((workspace / "runs" / f"{base}-{one}").exists() for one in range(1, count + 1))
        if not used and not members(base, workspace):
            return base
    raise AssertionError
