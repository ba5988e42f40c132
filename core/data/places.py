"""Messages with places for files, as a chat template wants them: lists of parts, or texts with a placeholder token."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from core.formats import MEDIA, PLACES, Message

KIND = {place: kind for kind, place in PLACES.items()}
SPLIT = re.compile(f"([{''.join(KIND)}])")
PROBE = "probe of a text"

Placeholders = Callable[[], Mapping[str, str]]
"""() -> kind -> token that stands for a file; asked only when there is a file, for a processor takes time to load."""


def placed(messages: Sequence[Message], kinds: Collection[str]) -> list[Message]:
    """Return messages in which each marker of these kinds (<image> of images) has become a place."""
    made = []
    for message in messages:
        content = message["content"]
        for kind in kinds:
            content = content.replace(MEDIA[kind], PLACES[kind])
        made.append({**message, "content": content})
    return made


def marked(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which each place is a marker again, for people to read."""
    return [{**m, "content": SPLIT.sub(lambda place: MEDIA[KIND[place[0]]], m["content"])} for m in messages]


def count(messages: Sequence[Message], kind: str) -> int:
    """Return how many files of a kind messages have places for."""
    return sum(str(message["content"]).count(PLACES[kind]) for message in messages)


def laid_out(messages: Sequence[Message], template: str, placeholders: Placeholders) -> list[Message]:
    """Return messages as the template takes them; placeholders stand for files where it knows texts only."""
    texts, parts = _takes(template)
    if texts and not any(SPLIT.search(str(message["content"])) for message in messages):
        return list(messages)
    made = []
    for message in messages:
        content = str(message["content"])
        if parts and (SPLIT.search(content) or not texts):
            content = [_part(piece) for piece in SPLIT.split(content) if piece] or [{"type": "text", "text": ""}]
        else:
            content = SPLIT.sub(lambda place: placeholders().get(KIND[place[0]], MEDIA[KIND[place[0]]]), content)
        made.append({**message, "content": content})
    return made


def unplaced(text: str) -> str:
    """Return what stands behind the last place in a text."""
    return SPLIT.split(text)[-1]


def _part(piece: str) -> dict[str, str]:
    return {"type": KIND[piece][:-1]} if piece in KIND else {"type": "text", "text": piece}


@cache
def _takes(template: str) -> tuple[bool, bool]:
    """Return whether a template writes contents that are texts, and contents that are lists of parts."""
    return _writes(template, PROBE), _writes(template, [{"type": "text", "text": PROBE}])


def _writes(template: str, content: Any) -> bool:
    message: Any = {"role": "user", "content": content}
    try:
        (text,), _ = render_jinja_template([[message]], chat_template=template)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return False
    return PROBE in text and "'type'" not in text  # a list that is written as it stands
