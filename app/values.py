"""The values of a form and the settings of a job, there and back; each problem at the path of its field. No gradio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.fields import plain
from core import config
from core.errors import InputError, Problem
from core.schema import Setting, Spec
from core.workspace import HUB_ID, jailed, locate

JobClass = type[config.Run] | type[config.Evaluation] | type[config.Serving] | type[config.Export]


class Values:
    """The settings of a job class that a form shows, and what their values mean.

    only, skip: paths (`hardware`, `model.path`) that are shown alone or left out; what is left out keeps its default.
    """

    def __init__(
        self, job: JobClass, workspace: Path, allowed: tuple[Path, ...], only: Iterable[str], skip: Iterable[str]
    ) -> None:
        only, skip = tuple(only), tuple(skip)
        self.kind = str(job.model_fields["kind"].default)
        self.workspace, self.allowed = workspace, allowed
        self.settings = tuple(
            s for s in config.known_settings(job) if (not only or _within(s.path, only)) and not _within(s.path, skip)
        )
        self.paths = frozenset(s.path for s in self.settings)

    def layer(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the values of the fields as nested settings; kinds that are not chosen and empty numbers fall away."""
        given = self.read(values)
        flat = {
            f"{s.key}.kind" if s.union else s.key: given[s.path]
            for s in self.settings
            if self.active(s, given) and given[s.path] is not None
        }
        return {"kind": self.kind, **config.nest(flat)}

    def job(self, values: Sequence[Any]) -> config.Job:
        """Return the checked job; raise InputError with every problem, each at the path of its field."""
        given = self.read(values)
        found = [Problem("config.missing", s.path) for s in self.used(given) if given[s.path] is None]
        for setting in self.used(given):
            found += self.outside(setting, given[setting.path])
        try:
            job = config.resolve(self.layer(values))
        except InputError as error:
            raise InputError("", problems=(*found, *error.problems)) from None
        if found:
            raise InputError("", problems=tuple(found))
        return job

    def problems(self, values: Sequence[Any]) -> tuple[Problem, ...]:
        """Return what is wrong with the values, fields that are still empty apart: someone is typing."""
        try:
            self.job(values)
        except InputError as error:
            return tuple(p for p in error.problems if p.code != "config.missing")
        return ()

    def values(self, job: Spec) -> list[Any]:
        """Return the value of each field for a job; the kinds that it did not choose show their defaults."""
        dumped = job.model_dump()
        found = []
        for s in self.settings:
            if s.variant and _walk(dumped, s.variant[0])["kind"] != s.variant[1]:
                found.append(s.default)
            else:
                value = _walk(dumped, s.key)
                found.append(value["kind"] if s.union else value)
        return found

    def different(self, given: Mapping[str, Any]) -> list[Setting]:
        """Return the settings whose value, by path, is not the default."""
        return [s for s in self.used(given) if plain(s, given[s.path]) != s.default]

    def defaults(self) -> list[Any]:
        return [s.default for s in self.settings]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        return {s.path: plain(s, value) for s, value in zip(self.settings, values, strict=True)}

    def active(self, setting: Setting, given: Mapping[str, Any]) -> bool:
        return setting.variant is None or given.get(setting.variant[0], setting.variant[1]) == setting.variant[1]

    def used(self, given: Mapping[str, Any]) -> list[Setting]:
        return [s for s in self.settings if self.active(s, given)]

    def home(self, place: str) -> str:
        """Return the path of the field that a problem belongs to (`data.train` for data.train.0); "" for none."""
        while place and place not in self.paths:
            place = place.rpartition(".")[0]
        return place

    def outside(self, setting: Setting, value: Any) -> tuple[Problem, ...]:
        """Return what is wrong with the paths in a field: they lead out of the workspace, or to nothing."""
        if setting.pick not in ("model", "data", "folder", "tuned", "judge"):
            return ()
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, str) or not path:
                continue  # resolve says what is wrong with it
            if setting.pick == "model" and HUB_ID.fullmatch(path) and not (self.workspace / path).exists():
                continue
            try:
                found = jailed(path, self.workspace, self.allowed, setting.path)
                if setting.pick in ("model", "data"):
                    locate(str(found), self.workspace, setting.path)
            except InputError as error:
                return error.problems
        return ()


def _within(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(f"{place}.") for place in places)


def _walk(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree
