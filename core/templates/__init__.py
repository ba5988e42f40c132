"""Chat templates of our own, for models that ship none, or when chosen; all with generation marks."""

from __future__ import annotations

from pathlib import Path

from core.errors import InputError

FOLDER = Path(__file__).parent
ENDS = {"gemma": "<end_of_turn>", "llama3": "<|eot_id|>"}
"""The token that ends an answer in a template that writes it by name; the others write the model's own."""


def names() -> list[str]:
    """Return what the setting may be: auto is the model's own."""
    return ["auto", *sorted(path.stem for path in FOLDER.glob("*.jinja"))]


def read(name: str) -> str:
    """Return the text of a template."""
    if name not in names()[1:]:
        raise InputError("data.unknown_template", "data.template", given=name, known=", ".join(names()))
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
