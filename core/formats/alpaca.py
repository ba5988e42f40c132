"""Alpaca rows: an instruction, what it is applied to, the answer; earlier turns and a system message if any."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from core.formats import Format, Line, Message, rows_of, text


class Alpaca(Format):
    """{"instruction": ..., "input": ..., "output": ..., "system": ..., "history": [[question, answer], ...]}"""

    kind: Literal["alpaca"] = "alpaca"
    mark: ClassVar[str] = "instruction"
    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    system: str = "system"
    history: str = "history"

    def conversation(self, row: dict[str, Any], line: Line) -> list[Message]:
        messages: list[Message] = []
        if system := text(row, self.system, line, optional=True):
            messages.append({"role": "system", "content": system})
        for question, answer in self._history(row, line):
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        prompt, query = text(row, self.prompt, line), text(row, self.query, line, optional=True)
        messages.append({"role": "user", "content": "\n".join(filter(None, (prompt, query)))})
        messages.append({"role": "assistant", "content": text(row, self.response, line)})
        return messages

    def _history(self, row: dict[str, Any], line: Line) -> list[tuple[str, str]]:
        if not row.get(self.history):
            return []
        turns = rows_of(row, self.history, line)
        if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
            raise line.error("data.history", column=self.history)
        texts = [[text({self.history: part}, self.history, line) for part in turn] for turn in turns]
        return [(question, answer) for question, answer in texts]
