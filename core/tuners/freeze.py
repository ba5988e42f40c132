"""Freeze tuning: some layers learn, the others stay."""

from __future__ import annotations

from typing import Literal

from core.schema import knob
from core.tuners import Tuner


class Freeze(Tuner):
    """Freeze
    Only some layers learn. Lighter than full tuning, no added matrices."""

    kind: Literal["freeze"] = "freeze"
    layers: int = knob(2, ge=-1024, le=1024)
    """Layers that learn
    Counted from the end; a negative number counts from the beginning. Typical: 1 to a quarter of all."""
    extra: list[str] = knob([], max_length=64, expert=True)
    """Modules that learn, too
    Names such as embed_tokens, lm_head or norm."""
