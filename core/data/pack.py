"""Rows to batches: rows laid end to end and told apart by their positions, so that nothing is padded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from core.data.album import Album
from core.data.encode import IGNORED, Encoded

Row = dict[str, Any]
"""input_ids and labels of one row, and media where it has any."""


def bins(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Return groups of rows, each with no more than `capacity` tokens: best fit, the longest rows first."""
    groups: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, group), ascending
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[row])
        at = bisect_left(free, (length, -1))
        if at < len(free):
            room, group = free.pop(at)
            groups[group].append(row)
        else:
            room, group = capacity, len(groups)
            groups.append([row])
        if room > length:
            left = (room - length, group)
            free.insert(bisect_left(free, left), left)
    return groups


@dataclass(frozen=True)
class Packed:
    """A dataset whose items are packs: several short rows in the place of one long one."""

    rows: Encoded
    packs: list[list[int]]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> list[Row]:
        return [self.rows[row] for row in self.packs[index]]

    @property
    def lengths_B(self) -> np.ndarray:
        lengths = self.rows.lengths_B
        return np.array([lengths[pack].sum() for pack in self.packs])


def packed(rows: Encoded, cutoff: int) -> Packed:
    """Return packs of at most `cutoff` tokens."""
    return Packed(rows, bins(rows.lengths_B, cutoff))


class Flat:
    """Collator: lays rows end to end in one line of tokens, (1, N), with the bounds that varlen attention needs.

    Positions begin anew with each row, and no row sees another: the model must have been proven to keep them apart
    (models.varlen.isolate).
    """

    pads = False

    def __call__(self, items: Sequence[Row | list[Row]]) -> dict[str, Any]:
        rows = [row for item in items for row in (item if isinstance(item, list) else [item])]
        lengths = [len(row["input_ids"]) for row in rows]
        bounds = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
        return {
            "input_ids": _line([row["input_ids"] for row in rows]),
            "labels": _line([row["labels"] for row in rows]),
            "position_ids": _line([np.arange(length) for length in lengths]),
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }


def _line(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))[None]


@dataclass(frozen=True)
class Padder:
    """Collator for models that can't keep rows in one line apart: pads them at their end to the longest."""

    pad_id: Any  # an int: a tokenizer's attributes are annotated as anything
    album: Album | None = None
    """What opens the files of rows that have any."""
    pads = True

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        ids_B_T = torch.full(shape, self.pad_id)
        labels_B_T, mask_B_T = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids_B_T[i, :length] = torch.from_numpy(row["input_ids"])
            labels_B_T[i, :length] = torch.from_numpy(row["labels"])
            mask_B_T[i, :length] = 1
        batch = {"input_ids": ids_B_T, "labels": labels_B_T, "attention_mask": mask_B_T}
        if self.album:
            batch |= self.album.beside([row.get("media", "") for row in rows], [0] * len(rows), shape[1])
        return batch


class Order(Sampler[int]):
    """The order of the rows in an epoch, from the seed and the number of the epoch alone.

    transformers' own samplers take it from the global random state instead, which a resumed run has no way to bring
    back for the beginning of an epoch: it would see other rows than the unbroken run.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, *, by_length: bool) -> None:
        self.lengths, self.batch, self.seed, self.by_length, self.epoch = lengths, batch, seed, by_length, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each epoch, also by the one that resumes within it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.by_length:
            return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))
        return iter(torch.randperm(len(self), generator=generator).tolist())
