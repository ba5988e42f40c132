"""Rows as questions: what stands before the last answer, and that answer to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.data.encode import Encoded


@dataclass(frozen=True)
class Prompts:
    """A dataset of questions. Of each row only its last answer may be learned (mask_history)."""

    rows: Encoded

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = slice(self.rows.starts_B1[index], self.rows.starts_B1[index + 1])
        ids_T, learned_T = self.rows.ids_N[row], self.rows.learned_N[row]
        begin = int(learned_T.argmax())
        return {"prompt": ids_T[:begin].tolist(), "answer": ids_T[begin:][learned_T[begin:]].tolist()}

    @property
    def lengths_B(self) -> np.ndarray:
        return self.rows.lengths_B


class Asked:
    """Collator: the questions of a batch with their answers, as lists."""

    pads = False

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {name: [item[name] for item in items] for name in ("prompt", "answer")}
