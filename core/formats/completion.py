"""Prompt and completion: each a text or a list of messages, as TRL names them; with a label, praise and blame."""

from __future__ import annotations

from typing import Any, Literal

from core.formats import Format, Line, Message, Raw, Row, text
from core.formats.messages import OpenAI

WORDS = OpenAI()
"""Messages inside such rows are in OpenAI's words."""


class Completion(Format):
    """{"prompt": ..., "completion": ..., "label": true}"""

    kind: Literal["completion"] = "completion"
    prompt: str = "prompt"
    response: str = "completion"
    kto_tag: str = "label"

    def row(self, raw: Raw, line: Line) -> Row:
        prompt, system = asked(raw, self.prompt, line)
        return self.built(raw, line, prompt, [WORDS.answer(raw, self.response, line)], system)


def asked(raw: Raw, column: str, line: Line) -> tuple[list[Message], str]:
    """Return (turns, system message) of a prompt: a text is one turn of the user."""
    value: Any = raw.get(column)
    if isinstance(value, list) and value:
        turns, system = WORDS.turns(raw, column, line)
        if not turns or turns[-1]["role"] == "assistant":
            raise line.error("data.no_question", column=column)
        return turns, system
    return [{"role": "user", "content": text(raw, column, line)}], ""
