"""One family of errors: a code, a place and parameters; the texts stand in messages.py and in the locale files.

Exit codes are the category: 2 bad input, 12 out of memory, 13 NaN, 14 device, 20 stopped, 1 anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.messages import english


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the code of its text, the dotted place of the setting it belongs to, the parameters."""

    code: str
    place: str = ""
    params: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        text = english(self.code, self.params)
        return f"{self.place}: {text}" if self.place else text


class TuneboardError(Exception):
    """Root of the family. `problems` is never empty; most errors have one."""

    exit_code = 1

    def __init__(self, code: str, place: str = "", *, problems: tuple[Problem, ...] = (), **params: Any) -> None:
        self.problems = problems or (Problem(code, place, params),)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.problems)

    @property
    def code(self) -> str:
        return self.problems[0].code

    @property
    def place(self) -> str:
        return self.problems[0].place

    @property
    def params(self) -> dict[str, Any]:
        return self.problems[0].params


def _rebuild(cls: type[TuneboardError], problems: tuple[Problem, ...]) -> TuneboardError:
    return cls(problems[0].code, problems=problems)


class InputError(TuneboardError):
    """What was given is wrong: a setting, a file, a model, an adapter."""

    exit_code = 2


class OutOfMemory(TuneboardError):
    """The accelerator or the machine has no memory left."""

    exit_code = 12


class NotFinite(TuneboardError):
    """The loss or the gradient became NaN or infinite."""

    exit_code = 13


class DeviceError(TuneboardError):
    """The accelerator failed or went away."""

    exit_code = 14


class Stopped(TuneboardError):
    """The run was asked to stop and did."""

    exit_code = 20
