"""Ask the models of a chat server: bring it up, find it again, stream the answers of its line-up one after the other.

The models live in a child process (a serving run), never in the board; one server serves all with the same line-up.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from app import jobs
from core import config, runs
from core.generation import Generation
from core.serving.client import Endpoint, endpoint, stream

Message = dict[str, Any]
"""{"role": system | user | assistant, "content": text, or a list of parts where there are images}."""
Part = dict[str, Any]
"""An image of a message (client.image_part)."""
FRAME_SECONDS = 0.08
"""Between two pictures of a growing answer: a browser or a terminal needs no more than 12 a second."""


def bring_up(job: config.Serving, workspace: Path) -> Path:
    """Return the run folder of a server with the line-up of a job: one that is up or coming up, else a new one."""
    return jobs.server(job, workspace) or jobs.start(job, workspace)


def ready(folder: Path) -> Endpoint | None:
    """Return where the server of a run listens; None while it loads and after its end."""
    return endpoint(folder) if runs.look(folder).status == "running" else None


def asked(text: str, images: Sequence[Part]) -> Message:
    """Return a question; images stand before its text."""
    return {"role": "user", "content": [*images, {"type": "text", "text": text}] if images else text}


def images(message: Message) -> list[Part]:
    """Return the images of a message."""
    content = message["content"]
    return [] if isinstance(content, str) else [part for part in content if part["type"] == "image_url"]


def text(message: Message) -> str:
    """Return the text of a message."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answers(place: Endpoint, conversations: Sequence[list[Message]], generation: Generation) -> Generator[list[str]]:
    """Yield the answers so far, one a model in the order of the line-up; the last time all of them whole.

    Closing the iterator ends the drawing. Raises InputError when the server refuses or is gone.
    """
    texts, shown = [""] * len(conversations), 0.0
    for index, (name, messages) in enumerate(zip(place.models, conversations, strict=True)):
        for piece in stream(place, request(name, messages, generation)):
            texts[index] += piece
            if time.monotonic() - shown > FRAME_SECONDS:
                yield list(texts)
                shown = time.monotonic()
    yield texts


def request(name: str, messages: list[Message], generation: Generation) -> dict[str, Any]:
    """Return the body of a chat completion; the server knows the longest answer by OpenAI's name."""
    settings = generation.model_dump()
    return {"model": name, "messages": messages, "max_tokens": settings.pop("max_new_tokens"), **settings}
