"""What can be seen to be wrong with a job before anything is started: files are read, no library is loaded.

The engine checks the same and more, by the same functions; this spares the reader the seconds until it does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from core import forecast, judges, templates
from core.config import Evaluation, Export, Job, Run, Serving, saved_by
from core.data.describe import find
from core.data.rows import ANSWERS, Broken, examples
from core.errors import InputError
from core.export.target import check_base, target
from core.formats import MEDIA
from core.models import ahead, attention, liger, rope
from core.models.headers import tensors
from core.models.inspect import ModelFacts, inspect, inspect_adapter, of_text
from core.models.jsons import read_json
from core.models.packages import check_here
from core.models.packed import OF_THEIR_OWN, in_bits, packing, packs_little
from core.models.room import devices, room
from core.models.targets import alike
from core.workspace import HUB_ID, locate, tuned

SECONDS = 0.5
"""How long rows are looked at; the engine reads all of them."""


def check(job: Job, workspace: Path) -> None:
    """Raise InputError, at the setting it belongs to, for the first thing that is wrong."""
    _check_devices(job)
    facts = check_model(job, workspace)
    check_packages(job)
    takes = tuple(MEDIA) if facts is None or facts.senses else ()
    if isinstance(job, Run):
        skip = job.data.skip_broken
        if job.data.template != "auto":
            templates.read(job.data.template)
        _check_rows(job.data.folder, job.data.train, "data.train", workspace, job.stage.wanted, takes, skip=skip)
        if job.data.eval:
            _check_rows(job.data.folder, job.data.eval, "data.eval", workspace, job.stage.wanted, takes, skip=skip)
        if judge := job.stage.judge():
            place = f"stage.{job.stage.kind}.reward.judge"
            base = locate(job.model.path, workspace) if facts else None
            judges.check(judge, tuned(judge, workspace, place), job, base, place)
        _check_starts(job.tuner.starts(), workspace, f"tuner.{job.tuner.kind}.start")
    if isinstance(job, Evaluation):
        _check_rows(job.evaluated.folder, [job.evaluated.set], "evaluated.set", workspace, ANSWERS, takes)
    if isinstance(job, Evaluation | Serving):
        for reference in job.tuned:
            _check_tuned(reference, workspace, "tuned")
            made_by = saved_by(tuned(reference, workspace, "tuned"))
            if isinstance(made_by, Run) and not made_by.stage.answers:
                raise InputError("run.judges", "tuned", run=reference)
    if isinstance(job, Export):
        if not job.source:
            raise InputError("config.missing", "source")
        _check_tuned(job.source, workspace, "source")
        if facts and not (tuned(job.source, workspace, "source") / "config.json").exists():
            check_base(facts.packed)
        if job.folder:
            target(job.folder, workspace)


def check_model(job: Job, workspace: Path) -> ModelFacts | None:
    """Raise InputError for what is wrong with the model and what is done with it; return its facts.

    None where it is not here yet.
    """
    _check_attention(job)
    try:
        folder = locate(job.model.path, workspace, "model.path")
    except InputError:
        if HUB_ID.fullmatch(job.model.path):
            return None  # the engine looks for it on the hub
        raise
    if job.model.revision:
        raise InputError("model.revision_here", "model.revision", folder=str(folder))
    facts, config = inspect(folder), read_json(folder / "config.json", "model.path", "model.no_config")
    if isinstance(job, Run):
        ahead.check(config)
    if job.model.rope != "none":
        rope.check(of_text(config), facts.model_type)
    if facts.packed:
        _check_packed(job, facts.packed)
    elif job.model.quantizer.kind.startswith("bnb") and facts.model_type in OF_THEIR_OWN:
        raise packs_little(facts.model_type)
    if isinstance(job, Run) and job.training.router_aux_loss and not facts.experts:
        raise InputError("moe.no_router", "training.router_aux_loss", model=facts.model_type)
    if isinstance(job, Run) and not facts.packed and alike(facts.model_type):
        forecast.check(job, workspace)
    if isinstance(job, Run) and "bitsandbytes" in (facts.packed, job.model.quantizer.package):
        layers, eight = in_bits(tensors(folder, "model.path"), facts.model_type, job.model.quantizer.kind)
        told = layers if facts.packed or alike(facts.model_type) else []
        job.tuner.as_begun(workspace).check_packed(told, eight=eight)
    return facts


def check_packages(job: Job) -> None:
    """Raise InputError for what its settings need that this machine lacks, above all packages; none is imported."""
    if job.hardware.cluster:
        check_here("ray", "hardware.cluster")
    job.model.quantizer.check(_device(job))
    if isinstance(job, Run):
        job.optimizer.check(_device(job))
        if job.training.liger:
            liger.check(_device(job))
        job.launcher.check(_device(job))
        for package in job.watching.report_to:
            check_here(package, "watching.report_to")


def _check_devices(job: Job) -> None:
    """Look whether the GPUs that are named are here, and that each process has one; nobody here knows a cluster's."""
    if job.hardware.cluster:
        return
    here = len(devices(job.hardware.model_copy(update={"devices": []})))
    if absent := [number for number in job.hardware.devices if number >= here]:
        raise InputError("devices.absent", "hardware.devices", number=min(absent), count=here)
    if isinstance(job, Run) and here and (wanted := job.launcher.count(len(devices(job.hardware)))) > here:
        raise InputError("devices.few", "launcher", wanted=wanted, count=here)


def _check_packed(job: Job, packed: str) -> None:
    """Look whether weights that come quantized can be read here, and trained above."""
    if job.model.quantizer.kind != "none":
        raise InputError("packed.twice", "model.quantizer", given=packed)
    for package in packing(packed).packages:
        check_here(package, "model.path")
    if isinstance(job, Run) and not packing(packed).unpacked and job.tuner.needs_whole():
        raise InputError("packed.full", "tuner", given=packed)


def _check_attention(job: Job) -> None:
    """Look whether the device can do what is asked; auto may be any that can be asked about without a library."""
    if job.model.attention not in ("auto", "sdpa", "eager"):
        attention.check(job.model, _device(job), training=isinstance(job, Run))


def _device(job: Job) -> str:
    hardware = job.hardware
    if hardware.device != "auto":
        return hardware.device
    if hardware.cluster:
        return "cuda" if hardware.cluster_gpus else "cpu"
    return room(hardware).device


def _check_rows(
    path: str, names: list[str], place: str, workspace: Path, wanted: Sequence[str], takes: Sequence[str], *,
    skip: bool = False,
) -> None:  # fmt: skip
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
        for _ in examples(described, folder, place, wanted=wanted, broken=broken, takes=lambda: takes, whole=False):
            if time.monotonic() > until:
                break


def _check_starts(references: Sequence[str], workspace: Path, place: str) -> None:
    """Look at each adapter to start from, and that none counts twice: by another name, or in another one already."""
    folders: dict[Path, str] = {}
    for reference in references:
        _check_tuned(reference, workspace, place)
        if first := folders.get(folder := tuned(reference, workspace, place).resolve()):
            raise InputError("start.same", place, given=reference, first=first)
        folders[folder] = reference
    for folder, reference in folders.items():
        within = _started_from(folder, workspace)
        if twice := next((folders[other] for other in folders if other in within), ""):
            raise InputError("start.twice", place, given=twice, run=reference)


def _started_from(adapter: Path, workspace: Path) -> list[Path]:
    """Return the adapters that the run of an adapter started from, but those gone."""
    found, job = [], saved_by(adapter)
    for reference in job.tuner.starts() if isinstance(job, Run) else ():
        with suppress(InputError):
            found.append(tuned(reference, workspace).resolve())
    return found


def _check_tuned(reference: str, workspace: Path, place: str) -> None:
    folder = tuned(reference, workspace, place)
    if (folder / "config.json").exists():
        inspect(folder, place)
    else:
        inspect_adapter(folder, place)
