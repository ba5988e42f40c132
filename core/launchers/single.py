"""One process on one device."""

from __future__ import annotations

from typing import Literal

from core.launchers import Launcher


class Single(Launcher):
    """One process
    One process on one device: right wherever the model fits on it."""

    kind: Literal["single"] = "single"
