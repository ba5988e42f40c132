"""Comparisons in TRL's names: a prompt, the better and the worse answer, each a text or a list of messages."""

from __future__ import annotations

import re
from typing import Any, Literal

from core.formats import Format, Line, Message, Raw, Row, apart, columns, text
from core.formats.completion import WORDS, asked

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
"""How Anthropic's hh-rlhf writes a conversation into one text."""


class Preference(Format):
    """{"prompt": ..., "chosen": ..., "rejected": ...}

    Both may be whole conversations that differ in their last answer; then they need no prompt, or begin with it.
    """

    kind: Literal["preference"] = "preference"
    prompt: str = "prompt"
    ranking: bool = True

    def row(self, raw: Raw, line: Line) -> Row:
        if raw.get(self.prompt) is None:
            return self._from_conversations(raw, line)
        if any(isinstance(raw.get(column), list) and len(raw[column]) > 1 for column in (self.chosen, self.rejected)):
            return self._from_conversations(raw, line)
        prompt, system = asked(raw, self.prompt, line)
        both = [WORDS.answer(raw, column, line) for column in (self.chosen, self.rejected)]
        return self.built(raw, line, prompt, apart(both, line), system)

    def _from_conversations(self, raw: Raw, line: Line) -> Row:
        both = [self._conversation(raw, column, line) for column in (self.chosen, self.rejected)]
        (better, system), (worse, other) = both
        for turns in (better, worse):
            if len(turns) < 2 or turns[-1]["role"] != "assistant":
                raise line.error("data.no_answer", column=self.chosen)
        if better[:-1] != worse[:-1] or system != other:
            raise line.error("data.prompts_differ")
        return self.built(raw, line, better[:-1], apart([better[-1], worse[-1]], line), system)

    def _conversation(self, raw: Raw, column: str, line: Line) -> tuple[list[Message], str]:
        """Return (turns, system message) of a column; the prompt, if there is one, begins it or stands before it."""
        given: Any = raw.get(column)
        if isinstance(given, list):
            asked_: Any = raw.get(self.prompt) or []
            before = [{"role": "user", "content": asked_}] if isinstance(asked_, str) else asked_
            ruled = isinstance(given[0], dict) and given[0].get("role") == "system" if given else False
            repeated = before in (given[: len(before)], given[ruled : ruled + len(before)])
            whole = given if repeated else [*before, *given]
            return WORDS.turns({column: whole}, column, line)
        said = text(raw, column, line)
        _, *parts = SPEAKER.split(said)
        if not parts:
            raise line.error("data.no_column", column=self.prompt, columns=columns(raw))
        roles = {"Human": "user", "Assistant": "assistant"}
        turns = zip(parts[::2], parts[1::2], strict=True)
        messages = [{"role": roles[who], "content": what.strip()} for who, what in turns]
        return WORDS.turns({column: messages}, column, line)
