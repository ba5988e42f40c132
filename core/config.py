"""The settings of every job, and the way from layers of settings to one checked job: merge, override, resolve, dump.

Defaults < recipe < run.yaml < form or `key=value`. Cold: neither torch nor transformers is imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError, model_validator

from core import yamls
from core.errors import InputError, Problem
from core.messages import MESSAGES
from core.optimizers import Optimizer
from core.schema import Setting, Spec, choice, crossed, knob, settings
from core.sections import Data, Evaluated, Generation, Hardware, Model, Saving, Training
from core.stages import Stage
from core.tuners import Tuner

NAME = r"^\w[\w .-]*$"
"""Letters and digits of any script: names are those of folders."""


class Run(Spec):
    """Train
    Teach a model with data."""

    kind: Literal["train"] = "train"
    name: str = knob("run", min_length=1, max_length=60, pattern=NAME)
    """Name
    What it is called in lists and folders. Letters, digits, spaces, dots, dashes and underscores."""
    model: Model = knob(Model())
    """Model
    The base model."""
    data: Data = knob(Data())
    """Data
    What it learns from."""
    stage: Annotated[Stage, choice("core.stages")] = knob({"kind": "sft"})
    """Stage
    The kind of lesson. Supervised fine-tuning teaches answers by example."""
    tuner: Annotated[Tuner, choice("core.tuners")] = knob({"kind": "lora"})
    """Method
    Which weights learn. LoRA trains small added matrices and is right for most cases."""
    optimizer: Annotated[Optimizer, choice("core.optimizers")] = knob({"kind": "adamw"})
    """Optimizer
    How the weights move. AdamW is the safe choice."""
    training: Training = knob(Training())
    """Training
    How long and how carefully it learns."""
    saving: Saving = knob(Saving())
    """Checkpoints
    What is kept on the way."""
    hardware: Hardware = knob(Hardware())
    """Hardware
    What it runs on."""

    @model_validator(mode="after")
    def _stream_ends(self) -> Run:
        if self.data.streaming and not self.training.max_steps:
            raise crossed("data.stream_endless", "training.max_steps")
        return self

    @model_validator(mode="after")
    def _few_bits_stay(self) -> Run:
        if self.model.quantizer.kind != "none" and (against := self.tuner.needs_whole()):
            raise crossed(*against)
        return self


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
    """Return `tuner.rank=16 data.train=[a,b]` as nested settings; each value is read as YAML."""
    layers = []
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign or not key.strip(". "):
            raise InputError("config.assignment", text=assignment)
        layers.append(nest({key.strip(): yamls.value(value, key.strip())}))
    return merge(*layers)


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
    merged = merge(*layers)
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


def _problem(cls: type[Spec], detail: Any) -> Problem:
    """Turn one pydantic error into a problem at the same dotted path, or at the `place` that it names itself."""
    place, type_ = ".".join(map(str, detail["loc"])), detail["type"]
    params = {key: value for key, value in detail.get("ctx", {}).items() if isinstance(value, str | int | float)}
    place = str(params.pop("place", place))
    params["given"] = str(detail.get("input"))[:80]
    if type_ == "extra_forbidden":
        known = [s.path for s in known_settings(cls)] + sorted({s.path.rpartition(".")[0] for s in known_settings(cls)})
        near = difflib.get_close_matches(place, known, 1, 0.5)
        nearest = near[0].rpartition(".")[2] if near else ""
        params |= {"key": str(detail["loc"][-1]), "nearest": nearest}
        return Problem("config.unknown_key_near" if nearest else "config.unknown_key", place, params)
    code = type_ if type_ in MESSAGES else f"config.{type_}"
    return Problem(code if code in MESSAGES else "config.invalid", place, {**params, "what": detail["msg"]})


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
