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
from app.talk import Message, Part, answers, asked, bring_up
from core import config, runs
from core.errors import InputError, Problem
from core.generation import Generation
from core.serving.client import Endpoint, endpoint, image_part

POLL_SECONDS = 0.2
WARM = {"temperature": 0.7}
"""Chat is livelier than a measurement."""
SHOW = "/image"
"""Before a path: the next question is about this image."""


def talk(
    job: config.Serving, workspace: Path, prompt: str, images: list[Path], generation: dict[str, Any], answer: Answer
) -> None:
    """Load the models, or find them loaded; answer one prompt or talk until the end of the input.

    images: shown with the first question.
    """
    settings, parts = _generation(generation), [image_part(path) for path in images]
    mine = server(job, workspace) is None  # one that was up already belongs to somebody else, and stays
    folder = bring_up(job, workspace)
    try:
        place = _wait(folder, answer)
        if place and prompt:
            _once(place, asked(prompt, parts), settings, answer)
        elif place:
            _talk(place, parts, settings)
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


def _once(place: Endpoint, question: Message, settings: Generation, answer: Answer) -> None:
    """Ask one thing and print what each model says."""
    with console().status(say("chat.answering")):
        *_, texts = answers(place, [[question]] * len(place.models), settings)
    answer.fields["answers"] = dict(zip(place.models, texts, strict=True))
    for name, said in zip(place.models, texts, strict=True):
        answer.show(f"{name}: {plain(said).strip()}")


def _talk(place: Endpoint, images: list[Part], settings: Generation) -> None:
    """Read questions and show the answers growing side by side until the input ends."""
    note(say("chat.ready"))
    if place.sees:
        note(say("chat.images"))
    histories: list[list[Message]] = [[] for _ in place.models]
    while True:
        try:
            question = console(stderr=False).input(f"[bold]{say('chat.you')}[/bold] ").strip()
        except (EOFError, KeyboardInterrupt):
            out()
            return
        command, _, path = question.partition(" ")
        if command == SHOW:
            images = _shown(path.strip(), images)
        elif question and _turn(place, asked(question, images), histories, settings):
            images = []


def _shown(path: str, images: list[Part]) -> list[Part]:
    """Return the images of the next question with one more, if it can be read."""
    try:
        return [*images, image_part(Path(path))]
    except InputError as error:
        _complain(error.problems)
        return images


def _turn(place: Endpoint, question: Message, histories: list[list[Message]], settings: Generation) -> bool:
    """Put one question to all; what they said, cut short or not, becomes part of the conversation.

    Returns whether it was taken.
    """
    conversations = [[*history, question] for history in histories]
    texts = [""] * len(place.models)
    with Live(console=console(stderr=False), auto_refresh=False) as live:
        try:
            with closing(answers(place, conversations, settings)) as growing:
                for texts in growing:
                    live.update(_panels(place, texts), refresh=True)
        except KeyboardInterrupt:
            live.update(_panels(place, [f"{said} {say('chat.cut')}" for said in texts]), refresh=True)
        except InputError as error:
            _complain(error.problems)
            return False
    for history, conversation, said in zip(histories, conversations, texts, strict=True):
        history[:] = [*conversation, {"role": "assistant", "content": said}]
    return True


def _panels(place: Endpoint, texts: list[str]) -> Columns:
    """Return the answers so far as boxes beside each other."""
    width = max(24, console(stderr=False).width // len(texts) - 1)
    pairs = zip(place.models, texts, strict=True)
    return Columns([Panel(Text(plain(said)), title=Text(name), width=width) for name, said in pairs])


def _complain(found: tuple[Problem, ...]) -> None:
    for problem in found:
        note(f"{problem.code}  {text(problem)}", style="red")
