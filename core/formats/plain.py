"""Plain texts: nothing is asked and nothing answered; for pretraining, or for rows that are laid out already."""

from __future__ import annotations

from typing import Literal

from core.formats import Format, Line, Raw, Row, text


class Text(Format):
    """{"text": ...}"""

    kind: Literal["text"] = "text"
    prompt: str = "text"

    def row(self, raw: Raw, line: Line) -> Row:
        return Row([], [{"role": "assistant", "content": text(raw, self.prompt, line)}], plain=True)
