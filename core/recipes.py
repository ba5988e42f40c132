"""Recipes: partial settings for common wishes, one YAML file each in assets/recipes.

The first comment line is the label, the following ones are the help.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core import yamls
from core.errors import InputError
from core.workspace import ASSETS

FOLDER = ASSETS / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A named layer of settings."""

    name: str
    label: str
    help: str
    layer: dict[str, Any]


@cache
def recipes() -> dict[str, Recipe]:
    """Return every recipe by name, in the order of the file names (their numbers are no part of the name)."""
    return {recipe.name: recipe for recipe in map(_read, sorted(FOLDER.glob("*.yaml")))}


def recipe(name: str) -> Recipe:
    """Return one recipe; raise InputError when there is none of that name."""
    if name not in recipes():
        raise InputError("recipe.unknown", recipe=name[:80], known=", ".join(recipes()))
    return recipes()[name]


def _read(path: Path) -> Recipe:
    text = path.read_text(encoding="utf-8")
    label, *rest = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    return Recipe(path.stem.partition("-")[2], label, " ".join(rest), yamls.mapping(text, path.name))
