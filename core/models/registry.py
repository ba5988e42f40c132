"""Models that are known to fit, from registry.csv: what each is, how large, what it reads, which settings suit it.

A row is advice, never a condition: a model that is not listed is loaded all the same. Cold: the standard library only.
`python -m core.models.registry` writes docs/models.md from it.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.models.shapes import OF_EXPERTS

FILE = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class Entry:
    """One model. None and empty texts stand where nothing certain is known."""

    id: str
    """Its name on the hub: org/name."""
    family: str
    type: str
    """The model_type of its config.json; empty where transformers has no such type and the model brings its code."""
    parameters: float | None
    """In billions."""
    active: float | None
    """Billions that work on one token, in a mixture of experts."""
    context: int | None
    """Longest input in tokens."""
    modality: tuple[str, ...]
    """What it reads, out of text, image, video, audio; all write text."""
    template: str
    """Which of our templates suits a model that ships none."""
    gated: bool
    """Whether the hub asks for consent before a download."""
    settings: tuple[str, ...]
    """Assignments such as data.thinking=answer, as config.override takes them."""
    note: str


@cache
def entries() -> tuple[Entry, ...]:
    """Return every model, by family, the smaller ones of it first."""
    with FILE.open(encoding="utf-8", newline="") as stream:
        return tuple(_entry(row) for row in csv.DictReader(stream))


def find(text: str) -> list[Entry]:
    """Return the models whose id, family or modality hold every word of the text, smaller models first."""
    words = text.casefold().split()
    found = [entry for entry in entries() if all(word in _searched(entry) for word in words)]
    return sorted(found, key=lambda entry: math.inf if entry.parameters is None else entry.parameters)


def named(path: str) -> Entry | None:
    """Return the model that a hub id, or a folder called like the last part of one, stands for."""
    name = path.rstrip("/").rpartition("/")[2].casefold()
    found = [entry for entry in entries() if entry.id.rpartition("/")[2].casefold() == name]
    return next((entry for entry in found if entry.id == path), found[0] if found else None)


def of_type(model_type: str) -> list[Entry]:
    """Return the models of one model_type; none for an empty one."""
    return [entry for entry in entries() if model_type and entry.type == model_type]


def _searched(entry: Entry) -> str:
    return f"{entry.id}\n{entry.family}\n{'+'.join(entry.modality)}".casefold()


def _entry(row: dict[str, str]) -> Entry:
    return Entry(
        id=row["id"],
        family=row["family"],
        type=row["type"],
        parameters=float(row["parameters"]) if row["parameters"] else None,
        active=float(row["active"]) if row["active"] else None,
        context=int(row["context"]) if row["context"] else None,
        modality=tuple(row["modality"].split("+")),
        template=row["template"],
        gated=row["gated"] == "1",
        settings=tuple(row["settings"].split()),
        note=row["note"],
    )


HEAD = """# Models

{count} models and what is known of them. A row is advice: any other folder or hub id is tried just the same. Of every
type named in the second column but gemma3n (see its notes) a tiny model is loaded as a run loads it, and takes a full
and a LoRA step in the tests (tests/core/test_registry.py). A model without a type there brings code of its own (see
below). These {exceptions} are the exceptions, for which nothing is built or trained in the tests: {names}.

Models that read images learn from rows with images, and are measured, exported and asked about them, as their own
processor wants it. Proven with a tiny LLaVA (tests/core/test_vision.py); the others never met a real image here.
In mixtures of experts of {of_experts} LoRA leaves out the dense and shared MLPs: peft takes
their names for those of the experts. `tuner.experts=true` puts adapters on the experts.

Where a processor needs a package that is not installed (torchvision for Qwen-VL's and for videos, soundfile and soxr
for sounds), files are refused with its name, and texts are learned all the same.

## Models that bring code of their own

A model of a type that transformers does not have names classes in files of its folder (auto_map). That code could do
all that you can, so it is refused unless you say yes twice:

1. `tuneboard trust FOLDER` shows the files, their sha256 and the classes, and asks. Your consent is kept in
   `~/.config/tuneboard/trusted-code.json`, readable by you alone, and is void once a byte of the code or of auto_map
   changes. `tuneboard trust --list` shows what you agreed to, `tuneboard trust FOLDER --revoke` takes it back.
2. `--remote-code` on the command line of `train`, `evaluate`, `chat`, `export`, `runs resume` or `data render`, or of
   `board` for all that the board starts. No file of settings, no form and no request can set it.

A model of the hub has to lie in a folder with its code: `hf download NAME --local-dir FOLDER`. Code in folders inside
it, behind links, or in another repository is never run. The engine runs a private copy of the very bytes you agreed to;
neither the form nor the memory plan runs any. A whole model that is saved or exported carries the code along, and the
same consent holds for it. Where transformers has the type, the code in the folder is never looked at.

## The list

Written by `python -m core.models.registry`.

| model | type | billions of weights (active) | context | reads | template | notes |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """Return docs/models.md."""
    lines, names = [], [entry.id for entry in entries() if not entry.type]
    for entry in entries():
        size = f"{entry.parameters:g}" if entry.parameters else ""
        size += f" ({entry.active:g})" if entry.active else ""
        notes = "; ".join(filter(None, ["consent on the hub" if entry.gated else "", *entry.settings, entry.note]))
        cells = (entry.id, entry.type, size, entry.context or "", ", ".join(entry.modality), entry.template, notes)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    told = {"count": len(entries()), "exceptions": len(names), "names": ", ".join(names)}
    return HEAD.format(**told, of_experts=", ".join(OF_EXPERTS)) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs" / "models.md").write_text(page(), encoding="utf-8")
