"""The settings of every job, and the way from layers of settings to one checked job: merge, override, resolve, dump.

Defaults < recipe < run.yaml < form or `key=value`. Cold: neither torch nor transformers is imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError, model_validator

from core import yamls
from core.errors import InputError, Problem
from core.generation import Generation
from core.messages import MESSAGES
from core.run import NAME, Run
from core.schema import Setting, Spec, crossed, knob, settings
from core.sections import DEMO_DATA, Hardware, Model


class Evaluated(Spec):
    """Which questions are asked."""

    folder: str = knob(DEMO_DATA, min_length=1, max_length=1024, pick="data")
    """Data folder
    The folder with your files and dataset_info.json, the file that describes them."""
    set: str = knob("orders_test", min_length=1, max_length=200, pick="set")
    """Set
    Name from dataset_info.json, or a file name in the data folder."""
    max_rows: int = knob(100, ge=0)
    """Row limit
    Ask only the first so many rows. 0 asks all."""
    cutoff: int = knob(1024, ge=8, le=1_048_576, expert=True)
    """Cutoff length
    Longest question in tokens; a longer one loses its beginning."""
    batch_size: int = knob(16, ge=1, le=4096)
    """Batch size
    Questions answered at once. Lower it when memory runs out."""
    perplexity: bool = knob(True)
    """Perplexity
    Measure also how surprised each model is by the reference answers. Lower is better."""


class Evaluation(Spec):
    """Evaluate
    Let the base and tuned models answer a set and compare the answers with the references."""

    kind: Literal["evaluation"] = "evaluation"
    name: str = knob("evaluation", min_length=1, max_length=60, pattern=NAME)
    """Name
    What it is called in lists and folders. Letters, digits, spaces, dots, dashes and underscores."""
    model: Model = knob(Model())
    """Model
    The base model."""
    tuned: list[str] = knob([], pick="tuned", max_length=16)
    """Tuned
    Who answers beside the base: names of runs, or folders with an adapter or a whole model."""
    evaluated: Evaluated = knob(Evaluated())
    """Set
    The questions and reference answers."""
    generation: Generation = knob(Generation())
    """Answers
    How the answers are drawn."""
    hardware: Hardware = knob(Hardware())
    """Hardware
    What it runs on."""


class Serving(Spec):
    """Chat
    Keep a base model and any number of adapters ready to answer."""

    kind: Literal["serving"] = "serving"
    name: str = knob("chat", min_length=1, max_length=60, pattern=NAME)
    """Name
    What it is called in lists and folders. Letters, digits, spaces, dots, dashes and underscores."""
    model: Model = knob(Model())
    """Model
    The base model."""
    tuned: list[str] = knob([], pick="tuned", max_length=8)
    """Tuned
    Who answers beside the base: names of runs, or folders with an adapter or a whole model."""
    hardware: Hardware = knob(Hardware())
    """Hardware
    What it runs on."""

    @model_validator(mode="after")
    def _answers_here(self) -> Serving:
        if self.hardware.cluster:
            raise crossed("cluster.serving", "hardware.cluster")
        return self


class Export(Spec):
    """Export
    Merge an adapter into its base, write the whole model, read it back and compare."""

    kind: Literal["export"] = "export"
    name: str = knob("export", min_length=1, max_length=60, pattern=NAME)
    """Name
    What it is called in lists and folders. Letters, digits, spaces, dots, dashes and underscores."""
    model: Model = knob(Model())
    """Model
    The base model."""
    source: str = knob("", pick="tuned")
    """Tuned
    What is merged into the base: the name of a run, or a folder with an adapter or a whole model."""
    folder: str = knob("", pick="folder")
    """Folder
    Where the model goes; it must be empty or absent. Left empty, it goes into the folder of this export."""
    shard_gb: float = knob(5.0, gt=0, le=100, expert=True)
    """Shard size
    Largest weight file, in GB. Lower it for places that refuse big files. Typical: 2 to 10."""
    hardware: Hardware = knob(Hardware())
    """Hardware
    What it runs on."""

    @model_validator(mode="after")
    def _of_full_quality(self) -> Export:
        if self.model.quantizer.kind != "none":
            raise crossed("quantizer.export", "model.quantizer")
        return self


Job = Run | Evaluation | Serving | Export
JOBS: dict[str, type[Run] | type[Evaluation] | type[Serving] | type[Export]] = {
    "train": Run,
    "evaluation": Evaluation,
    "serving": Serving,
    "export": Export,
}


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layers laid over each other, later ones on top.

    Where a later layer names another `kind`, what the earlier ones said of the old kind falls away.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if "kind" in layer and "kind" in merged and layer["kind"] != merged["kind"]:
            merged = {}
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = merge(old if isinstance(old, dict) else {}, value) if isinstance(value, Mapping) else value
    return merged


def override(assignments: Iterable[str]) -> dict[str, Any]:
    """Return `tuner.rank=16 data.train=a,b` as nested settings: texts as they stand, unless quoted, the rest as YAML.

    Lists need no brackets, which are a nuisance in a shell.
    """
    layers = []
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign or not key.strip(". "):
            raise InputError("config.assignment", text=assignment)
        layers.append(_spelled(nest({key.strip(): _value(key.strip(), value.strip())})))
    return merge(*layers)


def _value(key: str, text: str) -> Any:
    if key in _of_type(str) and not text.startswith(("'", '"')):
        return text  # a pattern such as [0-9]+ or a #b means something else in YAML
    if key in _of_type(list) and not text.startswith("["):
        text = f"[{text}]"
    return yamls.value(text, key)


@cache
def _of_type(kind: type) -> frozenset[str]:
    """Return the keys of all settings that are texts, or lists."""
    known = (s for cls in JOBS.values() for s in known_settings(cls))
    return frozenset(s.key for s in known if kind in (s.info.annotation, get_origin(s.info.annotation)))


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"tuner.rank": 8} as {"tuner": {"rank": 8}}."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def run(*layers: Mapping[str, Any]) -> Run:
    """Merge layers that can be nothing but a training run, as `resolve` does."""
    job = resolve(*layers, {"kind": "train"})
    assert isinstance(job, Run)
    return job


def resolve(*layers: Mapping[str, Any], job: str = "train") -> Job:
    """Merge the layers and check them; raise InputError with every problem and its place.

    A layer may name the job by its `kind`; `job` stands where none does.
    """
    merged = merge(*map(_spelled, layers))
    kind = merged.get("kind", job)
    if kind not in JOBS:
        raise InputError("config.job", "kind", given=str(kind), known=", ".join(JOBS))
    try:
        return JOBS[kind].model_validate(merge(_default_kinds(JOBS[kind]), merged))
    except ValidationError as error:
        raise InputError("", problems=tuple(_problem(JOBS[kind], detail) for detail in error.errors())) from None


def dump(job: Job) -> str:
    """Return the full job as YAML that resolves to the same job."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load(text: str, where: str) -> Job:
    """Return the job in a YAML text; `where` names the file in messages."""
    return resolve(yamls.mapping(text, where))


def saved_by(folder: Path) -> Job | None:
    """Return the job of the run that saved an adapter or a model; None for one from elsewhere or another version."""
    settings = folder.with_name("run.yaml")
    try:
        return load(settings.read_text(encoding="utf-8"), settings.name) if settings.is_file() else None
    except InputError:
        return None


def _problem(cls: type[Spec], detail: Any) -> Problem:
    """Turn one pydantic error into a problem at the same dotted path, or at the `place` that it names itself."""
    place, type_ = ".".join(map(str, detail["loc"])), detail["type"]
    params = {key: value for key, value in detail.get("ctx", {}).items() if isinstance(value, str | int | float)}
    place = str(params.pop("place", place))
    params.setdefault("given", str(detail.get("input"))[:80])
    if type_ == "extra_forbidden":
        known = [s.path for s in known_settings(cls)] + sorted({s.path.rpartition(".")[0] for s in known_settings(cls)})
        near = difflib.get_close_matches(place, known, 1, 0.5)
        key, nearest = str(detail["loc"][-1]), near[0].rpartition(".")[2] if near else ""
        params |= {"key": key, "nearest": near[0] if nearest == key else nearest}
        return Problem("config.unknown_key_near" if nearest else "config.unknown_key", place, params)
    code = type_ if type_ in MESSAGES else f"config.{type_}"
    return Problem(code if code in MESSAGES else "config.invalid", place, {"what": detail["msg"], **params})


def _spelled(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer in which `tuner: oft` is spelled out: {"tuner": {"kind": "oft"}}."""
    spelled = dict(layer)
    for place in _choices():
        *parents, last = place.split(".")
        part: Any = spelled
        for parent in parents:
            if isinstance(part, dict) and isinstance(part.get(parent), Mapping):
                part[parent] = dict(part[parent])
                part = part[parent]
            else:
                part = None
        if isinstance(part, dict) and isinstance(part.get(last), str):
            part[last] = {"kind": part[last]}
    return spelled


@cache
def _choices() -> frozenset[str]:
    return frozenset(s.path for cls in JOBS.values() for s in known_settings(cls) if s.union)


@cache
def _default_kinds(cls: type[Spec]) -> dict[str, Any]:
    """Return the layer under all others: the default kind of every choice, so that `tuner.rank=16` alone is enough."""
    return nest({f"{s.path}.kind": s.default for s in known_settings(cls) if s.union})


@cache
def known_settings(cls: type[Spec]) -> tuple[Setting, ...]:
    """Return every setting of a job in the order of declaration."""
    return tuple(settings(cls))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a job file."""
    return TypeAdapter(Job).json_schema()
