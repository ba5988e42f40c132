"""The sole channel from the engine to whoever watches: one JSON object a line. Standard library only.

Types, a closed set: started, phase, step, eval, saved, sample, warning, error, end. They carry codes, never sentences.
The Writer folds what it writes and leaves a snapshot of the fold now and then, so that opening a run costs
the same after a thousand steps and after a million.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.series import Series

TYPES = ("started", "phase", "step", "eval", "saved", "sample", "warning", "error", "end")
FILE = "events.jsonl"
SNAPSHOT = "snapshot.json"
SNAPSHOT_EVERY = 2000
CURVES = ("loss", "smooth", "lr", "grad_norm", "tokens_per_second", "memory")
MOST_CURVES = 64
KEPT = 50
"""Warnings, samples and saved artefacts that a state remembers at most."""


@dataclass
class RunState:
    """What the events so far say of a run. Times are seconds since the epoch, UTC."""

    started: float | None = None
    job: str = ""
    phase: str = ""
    phase_params: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    total: int = 0
    updated: float | None = None
    last: dict[str, Any] = field(default_factory=dict)
    """The fields of the newest step event."""
    curves: dict[str, Series] = field(default_factory=lambda: {name: Series() for name in (*CURVES, "eval")})
    evals: dict[str, Any] = field(default_factory=dict)
    """The fields of the newest eval event; of several evaluation sets, of the first."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the started event told: device, versions, pid, resumed step."""
    saved: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    seconds_per_step: float | None = None
    _smooth: float | None = None

    def apply(self, event: dict[str, Any]) -> None:
        """Fold one event into the state."""
        self.updated = event.get("time", self.updated)
        handler = getattr(self, f"_{event.get('type')}", None) if event.get("type") in TYPES else None
        if handler:
            handler(event)

    def _started(self, event: dict[str, Any]) -> None:
        self.started, self.job, self.facts = event.get("time"), event.get("job", ""), event
        self.error, self.end, self.step, self.seconds_per_step = None, None, 0, None

    def _phase(self, event: dict[str, Any]) -> None:
        self.phase, self.phase_params = event["phase"], event.get("params", {})
        self.total, self.step = int(event.get("total", 0)), int(event.get("step", 0))
        if "resumed" in event:  # where training begins: 0, or the step of the checkpoint that it goes on from
            self.step = int(event["resumed"])
            for curve in self.curves.values():
                curve.cut(self.step)
            self.samples = [sample for sample in self.samples if sample.get("step", 0) <= self.step]
            self._smooth = self.curves["smooth"].bins[-1][1] if self.curves["smooth"].bins else None

    def _step(self, event: dict[str, Any]) -> None:
        before, self.last, self.step = self.last, event, int(event["step"])
        self.total = int(event.get("total", self.total))
        for name in CURVES:
            if isinstance(value := event.get(name), int | float):
                self.curves[name].add(self.step, value)
        self._metrics(event, "")
        if isinstance(loss := event.get("loss"), int | float):
            self._smooth = loss if self._smooth is None else 0.8 * self._smooth + 0.2 * loss
            self.curves["smooth"].add(self.step, self._smooth)
        steps = self.step - int(before.get("step", self.step))
        if steps > 0 and (took := event["time"] - before["time"]) >= 0:
            pace, old = took / steps, self.seconds_per_step
            self.seconds_per_step = pace if old is None else 0.9 * old + 0.1 * pace

    def _eval(self, event: dict[str, Any]) -> None:
        if not self.evals or event.get("set") == self.evals.get("set"):
            self.evals = event
        name = event.get("set")
        self._point(f"eval_{name}" if name else "eval", event, event.get("loss"))
        self._metrics(event, "eval " if name == self.evals.get("set") else f"eval {name} ")

    def _point(self, name: str, event: dict[str, Any], value: Any) -> None:
        """Add a point to a curve, which begins with it."""
        if isinstance(value, int | float) and (name in self.curves or len(self.curves) < MOST_CURVES):
            self.curves.setdefault(name, Series()).add(int(event["step"]), value)

    def _metrics(self, event: dict[str, Any], before: str) -> None:
        """Add to the curves of what a stage tells beside its loss: rewards/margins, eval rewards/margins ..."""
        for name, value in event.get("metrics", {}).items():
            self._point(before + name, event, value)

    def _saved(self, event: dict[str, Any]) -> None:
        self.saved = [*self.saved, event][-KEPT:]

    def _sample(self, event: dict[str, Any]) -> None:
        self.samples = [*self.samples, event][-KEPT:]

    def _warning(self, event: dict[str, Any]) -> None:
        self.warnings = [*self.warnings, event][-KEPT:]

    def _error(self, event: dict[str, Any]) -> None:
        self.error = event

    def _end(self, event: dict[str, Any]) -> None:
        self.end = event

    @property
    def eval_curves(self) -> dict[str, Series]:
        """The losses on held-out rows, by the name of the set; "" for rows of the training sets."""
        named = {name.removeprefix("eval").removeprefix("_"): curve for name, curve in self.curves.items()
                 if name == "eval" or name.startswith("eval_")}  # fmt: skip
        return {name: curve for name, curve in named.items() if curve.bins}

    @property
    def metric_curves(self) -> dict[str, Series]:
        """What a stage measures beside the loss: rewards, margins, divergence."""
        known = (*CURVES, "eval")
        return {name: curve for name, curve in self.curves.items() if name not in known and curve.bins
                and not name.startswith("eval_")}  # fmt: skip

    @property
    def eta(self) -> float | None:
        """Seconds until the last step, None while unknown."""
        if self.seconds_per_step is None or self.end or self.total <= self.step:
            return None
        return (self.total - self.step) * self.seconds_per_step

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def load(data: dict[str, Any]) -> RunState:
        curves = {name: Series(**curve) for name, curve in data["curves"].items()}
        return RunState(**{**data, "curves": curves})


class Writer:
    """Appends events to the run's file, one write a line; a line is whole or absent for every reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self._offset = fold(folder)
        self._count = 0
        self._lock = threading.Lock()  # the watchdog writes from a thread of its own
        _end_torn_line(folder / FILE)
        self._fd = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, type_: str, **fields: Any) -> None:
        """Write one event. NaN and infinity become null. Raises OSError on a full disk and leaves nothing torn."""
        if type_ not in TYPES:
            raise ValueError(f"unknown event type {type_}")
        event = finite({"type": type_, "time": round(time.time(), 3), **fields})
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            if (written := os.write(self._fd, line)) < len(line):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)  # the next one would stick to it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / FILE))
            self.state.apply(event)
            self._count += 1
            if self._count % SNAPSHOT_EVERY == 0 or type_ == "end":
                self.snapshot()

    def snapshot(self) -> None:
        """Leave the fold so far with the offset it reaches, written aside and renamed; on a full disk leave none."""
        data = {"offset": os.fstat(self._fd).st_size, "state": self.state.dump()}
        aside = self.folder / f"{SNAPSHOT}.tmp"
        try:
            aside.write_text(json.dumps(data, allow_nan=False), encoding="utf-8")
            aside.replace(self.folder / SNAPSHOT)
        except OSError:
            aside.unlink(missing_ok=True)  # what it would spare is time alone

    def close(self) -> None:
        os.close(self._fd)


class Silent(Writer):
    """The writer of a process that has nothing to tell: of several that do one job the first alone tells."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, RunState()

    def write(self, type_: str, **fields: Any) -> None:
        pass

    def close(self) -> None:
        pass


def finite(value: Any) -> Any:
    """Return the value with every NaN and infinity in it replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read(path: Path, offset: int = 0, limit: int = 1 << 20) -> tuple[list[dict[str, Any]], int]:
    """Return (whole events from a byte offset on, the offset after them); at most about `limit` bytes a call.

    An unterminated last line is left for the next call; a line that is not a JSON object is passed over.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            chunk = file.read(limit)
            if len(chunk) == limit and b"\n" not in chunk:
                chunk += file.readline()
    except FileNotFoundError:
        return [], offset
    whole = chunk[: chunk.rfind(b"\n") + 1]
    return [event for line in whole.splitlines() if (event := _parse(line))], offset + len(whole)


def fold(folder: Path) -> tuple[RunState, int]:
    """Return (state of the run folder, offset up to which its events are folded in)."""
    state, offset = _restore(folder)
    return catch_up(folder, state, offset)


def catch_up(folder: Path, state: RunState, offset: int) -> tuple[RunState, int]:
    """Fold in everything written since the offset; the state is changed in place and returned."""
    while True:
        events, after = read(folder / FILE, offset)
        for event in events:
            state.apply(event)
        if after == offset:
            return state, offset
        offset = after


def tail(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every event of a run from the first one on."""
    offset = 0
    while True:
        events, after = read(folder / FILE, offset)
        yield from events
        if after == offset:
            return
        offset = after


def _restore(folder: Path) -> tuple[RunState, int]:
    """Return the newest snapshot, or an empty state where there is none that can be read or that fits the file."""
    try:
        data = json.loads((folder / SNAPSHOT).read_text(encoding="utf-8"))
        if data["offset"] <= (folder / FILE).stat().st_size:
            return RunState.load(data["state"]), data["offset"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return RunState(), 0


def _end_torn_line(path: Path) -> None:
    """Close a line that a killed writer left open, so that the next event does not stick to it."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "time" in event else None
