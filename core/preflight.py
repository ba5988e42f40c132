"""What can be seen to be wrong with a job before anything is started: files are read, no library is loaded.

The engine checks the same and more, by the same functions; this spares the reader the seconds until it does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from core import templates
from core.config import Evaluation, Export, Job, Run, Serving
from core.data.describe import find
from core.data.rows import ANSWERS, LEARNABLE, Broken, examples
from core.errors import InputError
from core.export.target import target
from core.models.inspect import inspect, inspect_adapter
from core.models.packed import packing
from core.workspace import HUB_ID, locate, tuned

SECONDS = 0.5
"""How long rows are looked at; the engine reads all of them."""


def check(job: Job, workspace: Path) -> None:
    """Raise InputError, at the setting it belongs to, for the first thing that is wrong."""
    packed = _check_model(job.model.path, workspace)
    if packed and job.model.quantizer.kind != "none":
        raise InputError("packed.twice", "model.quantizer", given=packed)
    if packed and isinstance(job, Run) and not packing(packed).unpacked and job.tuner.needs_whole():
        raise InputError("packed.full", "tuner", given=packed)
    if isinstance(job, Run):
        skip = job.data.skip_broken
        if job.data.template != "auto":
            templates.read(job.data.template)
        _check_rows(job.data.folder, job.data.train, "data.train", workspace, LEARNABLE, skip=skip)
        if job.data.eval:
            _check_rows(job.data.folder, [job.data.eval], "data.eval", workspace, LEARNABLE, skip=skip)
    if isinstance(job, Evaluation):
        _check_rows(job.evaluated.folder, [job.evaluated.set], "evaluated.set", workspace, ANSWERS)
    if isinstance(job, Evaluation | Serving):
        for reference in job.tuned:
            _check_tuned(reference, workspace, "tuned")
    if isinstance(job, Export):
        if not job.source:
            raise InputError("config.missing", "source")
        _check_tuned(job.source, workspace, "source")
        if job.folder:
            target(job.folder, workspace)


def _check_model(path: str, workspace: Path) -> str:
    """Return how the weights of the model come quantized, as far as that can be told from here."""
    try:
        folder = locate(path, workspace, "model.path")
    except InputError:
        if HUB_ID.fullmatch(path):
            return ""  # the engine looks for it on the hub
        raise
    return inspect(folder).packed


def _check_rows(
    path: str, names: list[str], place: str, workspace: Path, wanted: Sequence[str], *, skip: bool = False
) -> None:
    """Look at the first rows of each set; those that lie elsewhere are left to the engine."""
    root = f"{place.partition('.')[0]}.folder"
    folder = locate(path, workspace, root)
    if not folder.is_dir():
        raise InputError("data.not_folder", root, folder=str(folder))
    for name in names:
        described = find(folder, name, place)
        if described.hub or described.url:
            continue
        until = time.monotonic() + SECONDS / len(names)
        broken = Broken() if skip else None
        for _ in examples(described, folder, place, wanted=wanted, broken=broken):
            if time.monotonic() > until:
                break


def _check_tuned(reference: str, workspace: Path, place: str) -> None:
    folder = tuned(reference, workspace, place)
    if (folder / "config.json").exists():
        inspect(folder, place)
    else:
        inspect_adapter(folder, place)
