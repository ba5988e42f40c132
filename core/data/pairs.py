"""Examples of two rows: the better and the worse answer, or an answer and one to something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.data.encode import Encoded
from core.data.pack import Flat, Padder, Row


@dataclass(frozen=True)
class Pairs:
    """A dataset whose items are two rows, of which the first stands at 2i."""

    rows: Encoded
    reference_B: np.ndarray | None = None
    """What the reference says of each row, where that was asked beforehand."""

    def __len__(self) -> int:
        return len(self.rows) // 2

    def __getitem__(self, index: int) -> list[Row]:
        return [self._row(2 * index), self._row(2 * index + 1)]

    @property
    def lengths_B(self) -> np.ndarray:
        return self.rows.lengths_B.reshape(-1, 2).sum(1)

    def _row(self, index: int) -> Row:
        row = self.rows[index]
        if self.rows.liked_B is not None:
            row["liked"] = bool(self.rows.liked_B[index])
        if self.reference_B is not None:
            row["reference"] = float(self.reference_B[index])
        return row


@dataclass(frozen=True)
class Sides:
    """Collator: n first rows, then n second ones, in one batch."""

    rows: Flat | Padder

    @property
    def pads(self) -> bool:
        return self.rows.pads

    def __call__(self, items: Sequence[list[Row]]) -> dict[str, Any]:
        rows = [item[side] for side in (0, 1) for item in items]
        return self.rows(rows) | _beside(rows)


@dataclass(frozen=True)
class Apart:
    """Collator: n first rows in a batch, which has the n second ones as a batch of their own, `other`."""

    rows: Flat | Padder

    @property
    def pads(self) -> bool:
        return self.rows.pads

    def __call__(self, items: Sequence[list[Row]]) -> dict[str, Any]:
        first, second = zip(*items, strict=True)
        return self.rows(first) | _beside(first) | {"other": self.rows(second) | _beside(second)}


def _beside(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Return what rows have beside their tokens: liked_B, reference_B."""
    named = {"liked": torch.bool, "reference": torch.float32}
    return {
        f"{name}_B": torch.tensor([row[name] for row in rows], dtype=dtype)
        for name, dtype in named.items()
        if name in rows[0]
    }
