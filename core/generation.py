"""How answers are drawn."""

from __future__ import annotations

from core.schema import Spec, knob


class Generation(Spec):
    """How answers are drawn."""

    max_new_tokens: int = knob(128, ge=1, le=32_768)
    """Longest answer
    In tokens."""
    temperature: float = knob(0.0, ge=0, le=5)
    """Temperature
    0 always takes the likeliest word; higher answers are more varied. Typical: 0 for measuring, 0.7 for chatting."""
    top_p: float = knob(1.0, gt=0, le=1, expert=True)
    """Top p
    Draw only from the likeliest words that together have this probability. Typical: 0.9 to 1."""
    top_k: int = knob(0, ge=0, le=1_000_000, expert=True)
    """Top k
    Draw only from so many likeliest words. 0 turns it off."""
    repetition_penalty: float = knob(1.0, gt=0, le=10, expert=True)
    """Repetition penalty
    Above 1 makes repeated words less likely. Typical: 1 to 1.2."""
    seed: int = knob(42, ge=0, le=2**31 - 1)
    """Seed
    The same seed gives the same answers."""
