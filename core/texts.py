"""The English texts that the declarations carry; locales/en.json is generated from them."""

from __future__ import annotations

from typing import Any

from core import config
from core.messages import MESSAGES
from core.recipes import recipes
from core.schema import section, variants


def texts() -> dict[str, Any]:
    """Return the English texts that the declarations carry: job, section, field, choice, recipe and message."""
    found: dict[str, Any] = {}
    for kind, cls in config.JOBS.items():
        _put(found, f"job.{kind}", cls.__doc__ or "")
        for name, info in cls.model_fields.items():
            if section(info):
                _put(found, f"section.{name}", info.description or "")
        for setting in config.known_settings(cls):
            _put(found, f"field.{setting.text}", setting.info.description or "")
            if setting.union:
                for kind_, variant in variants(setting.union.package).items():
                    _put(found, f"choice.{setting.path}.{kind_}", variant.__doc__ or "")
    for recipe in recipes().values():
        found.setdefault("recipe", {})[recipe.name] = {"label": recipe.label, "help": recipe.help}
    return found | {"message": config.nest(MESSAGES)}


def _put(tree: dict[str, Any], path: str, docstring: str) -> None:
    label, _, help_ = docstring.strip().partition("\n")
    place = tree
    for part in path.split("."):
        place = place.setdefault(part, {})
    text = {"label": label.strip(), "help": " ".join(help_.split())}
    if {key: place[key] for key in text if key in place} not in ({}, text):  # it may have settings of its own, too
        raise ValueError(f"{path} is documented twice, differently")
    place |= text
