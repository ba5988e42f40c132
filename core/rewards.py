"""How answers that a model draws while it learns are drawn and judged. Cold, like sections.py."""

from __future__ import annotations

from typing import Literal

from core.patterns import compiled
from core.schema import Spec, crossed, knob


class Drawing(Spec):
    """How answers are drawn to learn from."""

    max_new_tokens: int = knob(64, ge=1, le=32_768)
    """Longest answer
    In tokens. Answers that are longer are cut, and judged as they are."""
    temperature: float = knob(1.0, gt=0, le=5, expert=True)
    """Temperature
    How varied the answers are: without variety nothing is found out. Typical: 0.7 to 1."""


class Reward(Spec):
    """What an answer is worth."""

    by: Literal["exact", "regex", "length", "json", "model"] = knob("exact")
    """Reward
    What makes an answer good: it is the answer of the row (exact), a pattern is found in it (regex), it is about so
    many tokens long (length), it is JSON (json), or the number that a reward model gives it (model)."""
    pattern: str = knob("", max_length=1000)
    """Pattern
    A regular expression; an answer in which it is found is worth 1, others 0."""
    length: int = knob(0, ge=0, le=32_768)
    """Wanted length
    In tokens, with the end token. An answer of this length is worth 1; one twice as long 0."""
    judge: str = knob("", max_length=1024, pick="judge")
    """Reward model
    The run of stage “reward model” that judges, or its folder. An adapter shares the base with what learns."""


def check(reward: Reward, stage: str) -> None:
    """Raise the error of a reward that lacks what it needs, for a validator of a stage."""
    place = f"stage.{stage}.reward"
    needed = {"regex": "pattern", "length": "length", "model": "judge"}.get(reward.by, "by")
    if not getattr(reward, needed):
        raise crossed("reward.missing", f"{place}.{needed}", by=reward.by)
    try:
        compiled(reward.pattern)
    except ValueError as error:
        raise crossed("reward.pattern", f"{place}.pattern", what=str(error)) from None
