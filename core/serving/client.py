"""Talk to the chat server of a run. Cold: the board uses it."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from core.errors import InputError
from core.serving.protocol import error_from

FILE = "endpoint.json"
PATIENCE = httpx.Timeout(10, read=600)
"""Seconds; an answer may have to wait for the ones before it."""


@dataclass(frozen=True)
class Endpoint:
    """Where a chat server listens, and who answers there."""

    url: str
    token: str
    models: tuple[str, ...]
    sees: bool = False
    """Whether all of them take images."""


def endpoint(folder: Path) -> Endpoint | None:
    """Return the endpoint that a serving run has written; None while its models are not loaded.

    The file of a killed run may still be there: whether the run is alive is the run store's to say.
    """
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Endpoint(data["url"], data["token"], tuple(data["models"]), bool(data.get("sees")))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def image_part(path: Path) -> dict[str, Any]:
    """Return an image as a part of a message; raise InputError for a file that can't be read."""
    try:
        data = path.expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise InputError("chat.image", path=str(path)[:200], what=str(error)[:200]) from None
    kind, _ = mimetypes.guess_type(path.name)
    kind = kind if kind and kind.startswith("image/") else "image/png"  # the server looks at what is in it
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def stream(endpoint: Endpoint, request: dict[str, Any]) -> Iterator[str]:
    """Yield the pieces of an answer while it is drawn; closing the iterator stops the drawing.

    request: the body of POST /v1/chat/completions. Raises InputError when the server refuses or can't be reached.
    """
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    body = {**request, "stream": True}
    # the environment may name a proxy, and that is never on the way to this machine itself
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        try:
            with client.stream("POST", f"{endpoint.url}/v1/chat/completions", json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise error_from(_json(response.read()))
                yield from _pieces(response)
        except httpx.HTTPError as error:
            raise InputError("chat.unreachable", what=str(error) or type(error).__name__) from None


def _pieces(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        _, found, value = line.partition("data: ")
        if not found or value == "[DONE]":
            continue
        event = json.loads(value)
        if "error" in event:
            raise error_from(event)
        text = event["choices"][0]["delta"].get("content")
        if text:
            yield text


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
