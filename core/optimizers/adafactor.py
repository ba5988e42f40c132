"""Adafactor: the second moment of a matrix as one row and one column (Shazeer and Stern, arXiv 1804.04235)."""

from __future__ import annotations

import math
from typing import Any, Literal

from core.models.shapes import Shapes
from core.optimizers import Learning, Optimizer


class Adafactor(Optimizer):
    """Adafactor
    Keeps a row and a column for each matrix, next to nothing. For full tuning where AdamW's memory does not fit; a
    little slower to learn."""

    kind: Literal["adafactor"] = "adafactor"

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"optim": "adafactor"}

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        return sum(map(_of_one, learns.values()))


def _of_one(shape: tuple[int, ...]) -> int:
    """Return the bytes for a weight: fp32, whatever it is held in."""
    if len(shape) < 2:
        return 4 * math.prod(shape)
    return 4 * math.prod(shape[:-2]) * (shape[-2] + shape[-1])
