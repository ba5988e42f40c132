"""How the command line speaks: in the language of the terminal, results on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console

from app import i18n
from core import config
from core.errors import Problem, TuneboardError

PIPE_WIDTH = 160
"""Columns where nobody looks: a pipe or a file."""
STATUS = {"done": 0, "out_of_memory": 12, "nan": 13, "stopped": 20}
"""Exit codes by the cause of a run's end; a failed one brings its own."""


def language() -> str:
    """Return the language of the terminal: en, ru or zh."""
    named = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return i18n.pick(named.partition(".")[0].replace("_", "-"))


def say(key: str, /, **params: Any) -> str:
    """Return a text of the command line, by its key below ui.cli, in the language of the terminal."""
    return i18n.tr(language(), f"ui.cli.{key}", **params)


def number(value: Any) -> str:
    """Return a number as the language writes it; anything else as it stands."""
    return i18n.number(language(), value) if i18n.is_number(value) or value is None else str(value)


def out(*what: Any) -> None:
    """Print to stdout: the result of a command and nothing else."""
    console(stderr=False).print(*what, markup=False, highlight=False, soft_wrap=True)


def note(*what: Any, style: str | None = None) -> None:
    """Print to stderr: what a person wants to know on the way."""
    console().print(*what, markup=False, highlight=False, soft_wrap=True, style=style)


def console(stderr: bool = True) -> Console:
    found = Console(stderr=stderr)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found


@dataclass
class Answer:
    """What a command has to say at its end."""

    as_json: bool
    fields: dict[str, Any] = field(default_factory=dict)
    errors: list[Problem] = field(default_factory=list)
    status: int = 0
    """The exit code."""

    def show(self, *what: Any) -> None:
        """Print a result for people; with --json the object at the end says it all."""
        if not self.as_json:
            out(*what)

    def tell(self) -> None:
        """With --json: print the one object, now; nothing more comes after it."""
        if self.as_json:
            errors = [{"code": p.code, "place": p.place, "params": p.params, "text": text(p)} for p in self.errors]
            sys.stdout.write(json.dumps({**self.fields, "errors": errors}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            self.as_json = False


@contextmanager
def answering(as_json: bool) -> Iterator[Answer]:
    """Run the body of a command; then print what it has to say and leave with its exit code."""
    answer = Answer(as_json)
    try:
        yield answer
    except TuneboardError as error:
        answer.errors, answer.status = list(error.problems), error.exit_code
    except KeyboardInterrupt:
        answer.status = 20
    for problem in answer.errors:
        note(f"{problem.code}  {_place(problem)}{text(problem)}", style="red")
    answer.tell()
    raise typer.Exit(answer.status)


def text(problem: Problem) -> str:
    """Return what is wrong and what to do, in the language of the terminal."""
    return i18n.message(language(), problem.code, problem.params)


def _place(problem: Problem) -> str:
    """Return `tuner.rank: ` for a problem at tuner.lora.rank: the key that one types."""
    place = problem.place
    for job in config.JOBS.values():
        for choice, kind in {s.variant for s in config.known_settings(job) if s.variant}:
            if place.startswith(f"{choice}.{kind}."):
                place = choice + place.removeprefix(f"{choice}.{kind}")
    return f"{place}: " if place else ""


def plain(value: str) -> str:
    """Return a text of unknown origin without the control characters that could command a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", value)
