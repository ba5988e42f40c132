"""Full tuning: every weight learns."""

from __future__ import annotations

from typing import Literal

from core.tuners import Tuner


class Full(Tuner):
    """Full
    Every weight learns. Strongest and heaviest: about 16 bytes of memory a parameter."""

    kind: Literal["full"] = "full"
