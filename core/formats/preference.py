"""Comparisons in TRL's names: a prompt, the better and the worse answer, each a text or a list of messages."""

from __future__ import annotations

import re
from typing import Any, Literal

from core.formats import Format, Line, Message, Raw, Row, apart, text
from core.formats.completion import WORDS, asked

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
"""How Anthropic's hh-rlhf writes a conversation into one text."""


class Preference(Format):
    """{"prompt": ..., "chosen": ..., "rejected": ...}

    Without a prompt, both are whole conversations that differ in their last answer.
    """

    kind: Literal["preference"] = "preference"
    prompt: str = "prompt"
    ranking: bool = True

    def row(self, raw: Raw, line: Line) -> Row:
        if raw.get(self.prompt) is None:
            return self._from_conversations(raw, line)
        prompt, system = asked(raw, self.prompt, line)
        both = [self._last(raw, column, line) for column in (self.chosen, self.rejected)]
        return self.built(raw, line, prompt, apart(both, line), system)

    def _last(self, raw: Raw, column: str, line: Line) -> Message:
        """Return the answer in a column, which may be the whole conversation again."""
        value: Any = raw.get(column)
        if isinstance(value, list) and len(value) > 1:
            return WORDS.answer({column: value[-1]}, column, line)
        return WORDS.answer(raw, column, line)

    def _from_conversations(self, raw: Raw, line: Line) -> Row:
        both = [self._conversation(raw, column, line) for column in (self.chosen, self.rejected)]
        (better, system), (worse, _) = both
        for turns in (better, worse):
            if len(turns) < 2 or turns[-1]["role"] != "assistant":
                raise line.error("data.no_answer", column=self.chosen)
        if better[:-1] != worse[:-1]:
            raise line.error("data.prompts_differ")
        return self.built(raw, line, better[:-1], apart([better[-1], worse[-1]], line), system)

    def _conversation(self, raw: Raw, column: str, line: Line) -> tuple[list[Message], str]:
        if isinstance(raw.get(column), list):
            return WORDS.turns(raw, column, line)
        said = text(raw, column, line)
        _, *parts = SPEAKER.split(said)
        if not parts:
            raise line.error("data.no_column", column=self.prompt, columns=", ".join(raw))
        roles = {"Human": "user", "Assistant": "assistant"}
        turns = zip(parts[::2], parts[1::2], strict=True)
        messages = [{"role": roles[who], "content": what.strip()} for who, what in turns]
        return WORDS.turns({column: messages}, column, line)
