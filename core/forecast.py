"""Will a run fit? Its plan beside the room of its device, and the cheapest changes that make it fit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

from core import config
from core.config import Run
from core.errors import InputError
from core.known import Stamp, stamp
from core.models.decoder import of_config
from core.models.headers import tensors
from core.models.inspect import of_text
from core.models.jsons import read_json
from core.models.memory import Plan, plan
from core.models.packed import OF_THEIR_OWN, method, packing
from core.models.renamed import as_loaded
from core.models.room import Room, room
from core.models.shapes import WHOLE_TYPE, Shapes
from core.models.tables import known_tokens, widened
from core.sections import Model
from core.workspace import HUB_ID, locate

TIGHT = 0.85
"""Share of the free memory above which a plan is tight: it is good to about a tenth."""
SHORTEST = 64
"""Tokens below which no cutoff is proposed."""
OFFERED = 3
SECONDS, PATIENCE = 3, 60
"""How long the hub is waited for, and how long its silence is remembered."""
THINKS = "thinker."
"""Before the names of the weights that write, in the files of a model that speaks, too."""
Verdict = Literal["fits", "tight", "too_large"]


@dataclass(frozen=True)
class Fix:
    """Settings that make a run fit, and what it takes then."""

    patch: Mapping[str, Any]
    """Key as the command line takes it -> value."""
    plan: Plan


@dataclass(frozen=True)
class Forecast:
    """What a run takes and what there is."""

    plan: Plan
    room: Room
    fixes: tuple[Fix, ...]
    """The cheapest first; none for a run that fits, or where nothing helps."""

    @property
    def verdict(self) -> Verdict:
        return judge(self.plan, self.room)


def judge(planned: Plan, there: Room) -> Verdict:
    """Return whether a plan fits."""
    if planned.peak > there.free:
        return "too_large"
    return "fits" if planned.peak <= TIGHT * there.free else "tight"


def words(patch: Mapping[str, Any]) -> list[str]:
    """Return a change as words of the command line."""
    told = []
    for key, value in patch.items():
        if isinstance(value, dict):
            told.append(f"{key}.kind={value['kind']}")
        else:
            told.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return told


def forecast(run: Run, workspace: Path, there: Room | None = None) -> Forecast | None:
    """Return the forecast of a run; None where too little is known of its model, or of the machine (of a cluster).

    Or where nothing of what its files name would learn: they may name it otherwise than the model in memory does.
    there: the room that there is; by default it is asked.

    Raises InputError at model.path for a folder that holds no model.
    """
    found = _shapes(run.model, workspace)
    if not found or run.hardware.cluster:
        return None
    begun = run.model_copy(update={"tuner": run.tuner.as_begun(workspace)})
    shapes, stored = found
    try:
        return foresee(begun, _with_tokens(shapes, run.model, workspace), stored, there or room(run.hardware))
    except InputError as error:
        if error.code != "tuner.nothing":
            raise
        return None


def check(run: Run, workspace: Path) -> None:
    """Raise InputError for settings of the tuner that a model whose files are here has no place for."""
    folder = locate(run.model.path, workspace, "model.path")
    if found := _read(folder, stamp(folder)):
        run.tuner.check(found[0])


def unforeseen(run: Run, workspace: Path) -> InputError:
    """Return why there is no forecast of a run."""
    if run.hardware.cluster:
        return InputError("memory.cluster", "hardware.cluster")
    if _shapes(run.model, workspace):
        return InputError("memory.names", "tuner", model=run.model.path)
    known = _folder(run.model, workspace)
    return InputError("memory.size" if known else "memory.unknown", "model.path", model=run.model.path)


def foresee(run: Run, shapes: Shapes, stored: int, there: Room) -> Forecast:
    """Return the forecast of a run with a model of these shapes in this room; stored: as `plan` takes it."""
    planned = plan(run, shapes, there.device, stored, bf16=there.bf16)
    fixes = () if judge(planned, there) == "fits" else tuple(_fixes(run, shapes, stored, there))
    return Forecast(planned, there, fixes)


def _fixes(run: Run, shapes: Shapes, stored: int, there: Room) -> Iterator[Fix]:
    """Yield what makes a run fit: the cheapest ways first, none that does more than one before it."""
    done: list[frozenset[str]] = []
    for ways in WAYS:
        if any(before <= frozenset(ways) for before in done):
            continue
        patches = list(_patches(run, ways, packed=bool(stored) or shapes.type in OF_THEIR_OWN))
        if not patches or not _fits(run, patches[-1], shapes, stored, there):
            continue  # the strongest does not help
        for patch in patches:
            if planned := _fits(run, patch, shapes, stored, there):
                done.append(frozenset(ways))
                yield Fix(patch, planned)
                break
        if len(done) == OFFERED:
            return


def _fits(run: Run, patch: Mapping[str, Any], shapes: Shapes, stored: int, there: Room) -> Plan | None:
    """Return the plan of a run with other settings if it fits."""
    try:
        changed = config.run(run.model_dump(), config.nest(patch))
    except InputError:
        return None  # settings that don't go together
    planned = plan(changed, shapes, there.device, stored, bf16=there.bf16)
    return planned if judge(planned, there) == "fits" else None


WAYS: tuple[tuple[str, ...], ...] = (
    ("batch",), ("checkpointing",), ("batch", "checkpointing"), ("bits",), ("bits", "batch"), ("bits", "checkpointing"),
    ("bits", "batch", "checkpointing"),
    ("tuner",), ("tuner", "batch", "checkpointing"), ("tuner", "bits"), ("tuner", "bits", "batch", "checkpointing"),
    ("cutoff",), ("cutoff", "batch", "checkpointing"), ("cutoff", "tuner", "bits", "batch", "checkpointing"),
)  # fmt: skip
"""What can be changed, alone and together: what costs nothing but time before what costs quality."""


def _patches(run: Run, ways: tuple[str, ...], *, packed: bool) -> Iterator[dict[str, Any]]:
    """Yield patches that change just these things, the mildest first; none where one can't be changed.

    packed: whether the weights can't be packed by us.
    """
    options = [list(_options(run, way, ways, packed=packed)) for way in ways]
    for chosen in product(*options):
        yield {key: value for part in chosen for key, value in part.items()}


def _options(run: Run, way: str, ways: tuple[str, ...], *, packed: bool) -> Iterator[dict[str, Any]]:
    size, times = run.training.batch_size, run.training.accumulation
    if way == "batch" and run.stage.draws:
        yield from ({"stage.minibatch": part} for part in _halves(run.stage.together(size)))
        for smaller in _halves(size):  # fewer questions a step, where fewer of their answers at once are not enough
            yield {"training.batch_size": smaller}
            parts = _halves(run.stage.together(smaller))
            yield from ({"training.batch_size": smaller, "stage.minibatch": part} for part in parts)
    elif way == "batch":
        for smaller in _halves(size):  # the batch of a step stays as large as it was
            batches = {} if "one_batch" in run.optimizer.wants else {"training.accumulation": times * size // smaller}
            yield {"training.batch_size": smaller} | batches
    elif way == "checkpointing" and not run.training.gradient_checkpointing:
        yield {"training.gradient_checkpointing": True}
    elif way == "tuner" and run.tuner.needs_whole() == ("quantizer.full", "tuner"):
        other = {"optimizer": {"kind": "adamw"}} if "own_weights" in run.optimizer.wants else {}
        yield {"tuner": {"kind": "lora"}} | other
    elif way == "bits" and run.model.quantizer.kind == "none" and not packed:
        if "tuner" in ways or not run.tuner.needs_whole():
            yield {"model.quantizer": {"kind": "bnb_4bit"}}
    elif way == "cutoff":
        cutoff = run.data.cutoff // 2
        while cutoff >= SHORTEST:
            yield {"data.cutoff": cutoff}
            cutoff //= 2


def _halves(size: int) -> Iterator[int]:
    """Yield the divisors of a size below it, each about half of the one before."""
    smaller = size
    while smaller > 1:
        smaller = next(part for part in range(smaller // 2, 0, -1) if size % part == 0)
        yield smaller


def _shapes(model: Model, workspace: Path) -> tuple[Shapes, int] | None:
    """Return (shapes, bytes of weights that come quantized and stay so) of a model; None where too little is known."""
    folder = _folder(model, workspace)
    return _read(folder, stamp(folder)) if folder else None


def _folder(model: Model, workspace: Path) -> Path | None:
    """Return the folder with the model's config.json; None for one of the hub whose config is out of reach."""
    try:
        return locate(model.path, workspace, "model.path")
    except InputError:
        if not HUB_ID.fullmatch(model.path):
            raise
        found = _hub_config(model.path, model.revision, int(time.monotonic() // PATIENCE))
        return found.parent if found else None


def _with_tokens(shapes: Shapes, model: Model, workspace: Path) -> Shapes:
    """Return the shapes of a model with rows for its new tokens; where nobody knows how many it has, all are taken."""
    if not model.added:
        return shapes
    with suppress(InputError):
        folder = locate(model.path, workspace, "model.path")
        return widened(shapes, (_known_tokens(folder, stamp(folder)) or shapes.embedding[0]) + len(model.added))
    return widened(shapes, shapes.embedding[0] + len(model.added))


@lru_cache(maxsize=64)
def _known_tokens(folder: Path, written: Stamp) -> int | None:
    return known_tokens(folder)


@lru_cache(maxsize=64)
def _read(folder: Path, written: Stamp) -> tuple[Shapes, int] | None:
    settings = read_json(folder / "config.json", "model.path", "model.no_config")
    settings = of_text(settings) | {WHOLE_TYPE: settings.get("model_type")}
    here = any(folder.glob("*.safetensors"))
    entries = tensors(folder, "model.path") if here else {}
    if packed := method(settings):
        shapes = of_config(settings)
        stored = 0 if packing(packed).unpacked else sum(entry.bytes for entry in entries.values())
        return (shapes, stored) if shapes and (stored or packing(packed).unpacked) else None
    if here:
        return Shapes(_loaded({name: entry.shape for name, entry in entries.items()}, settings), settings), 0
    shapes = of_config(settings)
    return (shapes, 0) if shapes else None


def _loaded(tensors: dict[str, tuple[int, ...]], settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the weights that may learn: of a model that speaks, too, those of the part that writes."""
    thinker = {name.removeprefix(THINKS): shape for name, shape in tensors.items() if name.startswith(THINKS)}
    return as_loaded(thinker or tensors, str(settings[WHOLE_TYPE]))


@lru_cache(maxsize=64)
def _hub_config(name: str, revision: str, minute: int) -> Path | None:
    """Return config.json of a hub model, from the cache or fetched: a kilobyte; None where the hub is out of reach.

    Asked again every minute, not with every change of the form.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision or None, etag_timeout=SECONDS))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        return None
