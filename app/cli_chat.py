"""`tuneboard chat`: the base and tuned models side by side in the terminal."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.columns import Columns
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from app.cli_follow import exit_code, phase, problems
from app.cli_speak import Answer, console, note, out, plain, say, text
from app.jobs import server
from app.talk import Message, answers, bring_up
from core import config, runs
from core.errors import InputError, Problem
from core.sections import Generation
from core.serving.client import Endpoint, endpoint

POLL_SECONDS = 0.2
WARM = {"temperature": 0.7}
"""Chat is livelier than a measurement."""


def talk(job: config.Serving, workspace: Path, prompt: str, generation: dict[str, Any], answer: Answer) -> None:
    """Load the models, or find them loaded; answer one prompt or talk until the end of the input."""
    settings = _generation(generation)
    mine = server(job, workspace) is None  # one that was up already belongs to somebody else, and stays
    folder = bring_up(job, workspace)
    try:
        place = _wait(folder, answer)
        if place and prompt:
            _once(place, prompt, settings, answer)
        elif place:
            _talk(place, settings)
    finally:
        if mine:
            runs.stop(folder)
            note(say("chat.goodbye"))


def _generation(given: dict[str, Any]) -> Generation:
    """Return the sampling settings; their errors read like those of any other setting."""
    try:
        return Generation.model_validate(WARM | given)
    except ValidationError:
        config.resolve({"generation": given}, job="evaluation")
        raise


def _wait(folder: Path, answer: Answer) -> Endpoint | None:
    """Wait until the models are loaded; None, with the errors in the answer, when they can't be."""
    answer.fields |= {"job": "serving", "run": str(folder)}
    view = None
    with console().status(say("chat.waiting")) as spinner:
        while view is None or view.active or view.status == "new":
            view = runs.look(folder, view)
            if view.status == "running" and (place := endpoint(folder)):
                return place
            spinner.update(phase(view))
            time.sleep(POLL_SECONDS)
    answer.status, answer.errors = exit_code(view), problems(view)
    return None


def _once(place: Endpoint, prompt: str, settings: Generation, answer: Answer) -> None:
    """Ask one thing and print what each model says."""
    conversation = [{"role": "user", "content": prompt}]
    with console().status(say("chat.answering")):
        *_, texts = answers(place, [conversation] * len(place.models), settings)
    answer.fields["answers"] = dict(zip(place.models, texts, strict=True))
    for name, said in zip(place.models, texts, strict=True):
        answer.show(f"{name}: {plain(said).strip()}")


def _talk(place: Endpoint, settings: Generation) -> None:
    """Read questions and show the answers growing side by side until the input ends."""
    note(say("chat.ready"))
    histories: list[list[Message]] = [[] for _ in place.models]
    while True:
        try:
            question = console(stderr=False).input(f"[bold]{say('chat.you')}[/bold] ").strip()
        except (EOFError, KeyboardInterrupt):
            out()
            return
        if question:
            _turn(place, question, histories, settings)


def _turn(place: Endpoint, question: str, histories: list[list[Message]], settings: Generation) -> None:
    """Put one question to all; what they said, cut short or not, becomes part of the conversation."""
    asked = [[*history, {"role": "user", "content": question}] for history in histories]
    texts = [""] * len(place.models)
    with Live(console=console(stderr=False), auto_refresh=False) as live:
        try:
            with closing(answers(place, asked, settings)) as growing:
                for texts in growing:
                    live.update(_panels(place, texts), refresh=True)
        except KeyboardInterrupt:
            live.update(_panels(place, [f"{said} {say('chat.cut')}" for said in texts]), refresh=True)
        except InputError as error:
            _complain(error.problems)
            return
    for history, conversation, said in zip(histories, asked, texts, strict=True):
        history[:] = [*conversation, {"role": "assistant", "content": said}]


def _panels(place: Endpoint, texts: list[str]) -> Columns:
    """Return the answers so far as boxes beside each other."""
    width = max(24, console(stderr=False).width // len(texts) - 1)
    pairs = zip(place.models, texts, strict=True)
    return Columns([Panel(Text(plain(said)), title=Text(name), width=width) for name, said in pairs])


def _complain(found: tuple[Problem, ...]) -> None:
    for problem in found:
        note(f"{problem.code}  {text(problem)}", style="red")
