"""The declaration language of the settings: Spec, knob() and choice().

A setting is one annotated line with a docstring; its first line is the label, the rest the help. From it follow the
YAML key, the command-line override, the range check, the widget on the board, the locale key, the place of an error.
This module is cold: it imports pydantic and the standard library only.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, LiteralString, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, PydanticUndefined, core_schema


class Spec(BaseModel):
    """A group of settings: closed, frozen, finite, documented by the docstrings of its fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def knob(default: Any = PydanticUndefined, *, expert: bool = False, pick: str = "", **limits: Any) -> Any:
    """Declare one setting.

    expert: folded away on the board. pick: what the board offers to choose from ("model", "data", "run", "adapter").
    limits: pydantic's ge, gt, le, lt, min_length, max_length, pattern.
    """
    extra: dict[str, Any] = {key: value for key, value in (("expert", expert), ("pick", pick)) if value}
    if isinstance(default, BaseModel | list | dict):
        return Field(default_factory=lambda: default, json_schema_extra=extra, **limits)
    return Field(default, json_schema_extra=extra, **limits)


def crossed(code: LiteralString, place: str, **params: str | int) -> PydanticCustomError:
    """Return the error of settings that don't go together, for a validator to raise: it is told at `place`."""
    return PydanticCustomError(code, "settings that don't go together", {"place": place, **params})


@cache
def variants(package: str) -> dict[str, type[Spec]]:
    """Return kind -> class of every Spec declared in the modules of a package: the only discovery in the project."""
    found: dict[str, type[Spec]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, type) and issubclass(value, Spec) and value.__module__ == info.name:
                kind = value.model_fields.get("kind")
                if kind is not None:
                    found[kind.default] = value
    return found


@dataclass(frozen=True)
class choice:
    """Annotation of a field whose value is one of the Specs found in a package, told apart by its `kind`."""

    package: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        found = {kind: handler.generate_schema(cls) for kind, cls in variants(self.package).items()}
        return core_schema.tagged_union_schema(found, discriminator="kind")


@dataclass(frozen=True)
class Setting:
    """One setting as the form, the reference page and the locale files see it.

    path: dotted place with the kind of each choice in it (`tuner.lora.rank`), the same as in a validation error.
    """

    path: str
    info: FieldInfo
    variant: tuple[str, str] | None
    """(path of the nearest choice, kind) that this setting belongs to; None outside any choice."""
    shared: bool = False
    """Whether other kinds of the choice have it, too: it is declared in a class above them."""

    @property
    def label(self) -> str:
        return (self.info.description or self.path).split("\n", 1)[0].strip()

    @property
    def help(self) -> str:
        return " ".join((self.info.description or "").split("\n")[1:]).strip()

    @property
    def expert(self) -> bool:
        return bool(self._extra.get("expert"))

    @property
    def pick(self) -> str:
        return str(self._extra.get("pick", ""))

    @property
    def union(self) -> choice | None:
        """The choice that this setting makes (its value is a kind), or None for a plain value."""
        return next((meta for meta in self.info.metadata if isinstance(meta, choice)), None)

    @property
    def default(self) -> Any:
        """The default value; for a choice the default kind; None where a value must be given."""
        value = self.info.get_default(call_default_factory=True, validated_data={})
        if value is PydanticUndefined:
            return None
        return value["kind"] if self.union else value

    @property
    def limits(self) -> dict[str, Any]:
        """Bounds by name: ge, gt, le, lt, min_length, max_length, pattern."""
        names = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
        return {n: v for meta in self.info.metadata for n in names if (v := getattr(meta, n, None)) is not None}

    @property
    def key(self) -> str:
        """The key of the YAML file and of the command line: the path without the kinds (`tuner.rank`)."""
        if self.variant is None:
            return self.path
        place, kind = self.variant
        return place + self.path.removeprefix(f"{place}.{kind}")

    @property
    def text(self) -> str:
        """The key of its label and help: what several kinds share is told once, beside them."""
        return self.key if self.shared else self.path

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.info.json_schema_extra
        return extra if isinstance(extra, dict) else {}


def settings(spec: type[Spec], prefix: str = "", variant: tuple[str, str] | None = None) -> Iterator[Setting]:
    """Yield every setting of a Spec in the order of declaration; a choice first, then the settings of each variant."""
    for name, info in spec.model_fields.items():
        if name == "kind":
            continue
        shared = variant is not None and name not in inspect.get_annotations(spec)
        setting = Setting(f"{prefix}{name}", info, variant, shared)
        if setting.union:
            yield setting
            for kind, cls in variants(setting.union.package).items():
                yield from settings(cls, f"{setting.path}.{kind}.", (setting.path, kind))
        elif inner := section(info):
            yield from settings(inner, f"{setting.path}.", variant)
        else:
            yield setting


def section(info: FieldInfo) -> type[Spec] | None:
    """Return the Spec class of a field that is a section of its own (and no choice), or None."""
    if any(isinstance(meta, choice) for meta in info.metadata):
        return None
    for candidate in (info.annotation, *get_args(info.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Spec):
            return candidate
    return None
