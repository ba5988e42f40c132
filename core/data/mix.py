"""Several sets to one: which row of which set comes when."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import datasets
import numpy as np

STOPPING: dict[str, Any] = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}


def order(lengths: Sequence[int], strategy: str, shares: Sequence[float], seed: int) -> np.ndarray:
    """Return positions in the sets laid end to end, drawn by shares as `strategy` (a key of STOPPING) says."""
    starts = np.cumsum([0, *lengths])
    positions = [datasets.Dataset.from_dict({"row": range(begin, end)}) for begin, end in pairwise(starts)]
    # without shares the library takes turns, which leaves nothing to chance
    mixed: Any = datasets.interleave_datasets(
        positions, probabilities=list(shares) or None, seed=seed, stopping_strategy=STOPPING[strategy]
    )
    return np.array(mixed["row"])
