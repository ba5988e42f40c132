"""Alpaca rows: an instruction, what it is applied to, the answer; earlier turns and a system message if any."""

from __future__ import annotations

from typing import Literal

from core.formats import Format, Line, Message, Raw, Row, apart, items, text
from core.formats.plain import Text


class Alpaca(Format):
    """{"instruction": ..., "input": ..., "output": ..., "system": ..., "history": [[question, answer], ...]}

    With `ranking`, chosen and rejected stand in place of output, or output is the list of the two.
    """

    kind: Literal["alpaca"] = "alpaca"
    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    history: str = "history"

    def settled(self, raw: Raw) -> Format:
        """An entry that names a prompt only means plain texts, unless the rows have answers after all."""
        alone = self.model_fields_set - {"kind"} == {"prompt"}
        return Text(prompt=self.prompt) if alone and self.prompt in raw and self.response not in raw else self

    def row(self, raw: Raw, line: Line) -> Row:
        messages: list[Message] = []
        for question, answer in self._history(raw, line):
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        # one column may be named as both, and is said once
        parts = [text(raw, self.prompt, line)]
        if self.query != self.prompt:
            parts.append(text(raw, self.query, line, optional=True))
        messages.append({"role": "user", "content": "\n".join(filter(None, parts))})
        return self.built(raw, line, messages, self._response(raw, line))

    def _response(self, raw: Raw, line: Line) -> list[Message]:
        if self.ranking and not isinstance(raw.get(self.response), list):
            return self.pair(raw, line)
        if not self.ranking:
            return [self.answer(raw, self.response, line)]
        answers = items(raw, self.response, line)
        if len(answers) != 2:
            raise line.error("data.not_pair", column=self.response, count=len(answers))
        both = [self.answer({self.response: answer}, self.response, line) for answer in answers]
        return apart(both, line)

    def _history(self, raw: Raw, line: Line) -> list[tuple[str, str]]:
        if not raw.get(self.history):
            return []
        turns = items(raw, self.history, line)
        if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
            raise line.error("data.history", column=self.history)
        texts = [[text({self.history: part}, self.history, line) for part in turn] for turn in turns]
        return [(question, answer) for question, answer in texts]
