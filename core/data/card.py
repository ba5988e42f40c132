"""How hard a set is to learn: the figures of LoRA Land (arXiv 2405.00732, section 5.5)."""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Callable, Iterable

import numpy as np
from rapidfuzz.distance import LCSseq

from core.formats import Row

WORDS = re.compile(r"[a-z0-9]+|[^\W\da-z_]", re.UNICODE)
"""Words as rouge-score takes them; every letter that is not Latin is a word of its own."""


FIGURES = ("input_length", "output_length", "example_length", "compressibility", "rouge_l")


def words(text: str) -> list[str]:
    return WORDS.findall(text.lower())


def rouge_l(one: list[str], other: list[str]) -> float:
    """Return the F measure of the longest common subsequence of words, as ROUGE-L counts it."""
    if not one or not other:
        return 0.0
    return 2 * LCSseq.similarity(one, other) / (len(one) + len(other))


def compressibility(text: str) -> float:
    """Return the share of its bytes that is saved when a text is packed by zlib; below 0 for very short ones."""
    raw = text.encode()
    return 1 - len(zlib.compress(raw)) / len(raw) if raw else 0.0


def parts(row: Row) -> tuple[str, str]:
    """Return (input, output) of a row as texts."""
    asked = [row.system, *(str(message["content"]) for message in row.prompt)]
    return "\n".join(filter(None, asked)), str(row.response[0]["content"])


class Card:
    """The figures over rows that pass by.

    `length` counts in the unit that is wanted, characters by default. ROUGE-L compares input and output: how much of
    the answer stands in the question.
    """

    def __init__(self, length: Callable[[str], int] = len) -> None:
        self.length = length
        self.figures = {name: array("d") for name in FIGURES}

    def add(self, row: Row) -> None:
        asked, answered = parts(row)
        inside, outside = self.length(asked), self.length(answered)
        alike = rouge_l(words(asked), words(answered))
        values = (inside, outside, inside + outside, compressibility(f"{asked}\n{answered}"), alike)
        for name, value in zip(FIGURES, values, strict=True):
            self.figures[name].append(value)

    def told(self) -> dict[str, dict[str, float] | int]:
        """Return {"examples": n, figure: {"mean", "std", "p95"}}."""
        made: dict[str, dict[str, float] | int] = {"examples": len(self.figures["rouge_l"])}
        for name, values in self.figures.items():
            if values:
                made[name] = {"mean": float(np.mean(values)), "std": float(np.std(values)),
                              "p95": float(np.percentile(values, 95))}  # fmt: skip
        return made


def card(rows: Iterable[Row]) -> dict[str, dict[str, float] | int]:
    """Return the figures over rows."""
    made = Card()
    for row in rows:
        made.add(row)
    return made.told()
