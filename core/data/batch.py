"""Encoded rows to batches: loading the sets of a run, splitting, padding, the order of the rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

from core.data.describe import Described, find
from core.data.encode import IGNORED, Encoded, encode
from core.data.rows import conversations, regular
from core.errors import InputError
from core.sections import Data
from core.workspace import locate


@dataclass(frozen=True)
class Lessons:
    """What a run learns from. `eval` is empty when nothing is held out."""

    train: Encoded
    eval: Encoded
    fingerprint: str
    """sha256 over the files and what the description says of them."""
    cut: int
    """Rows longer than the cutoff."""
    dropped: int
    """Rows without a token to learn."""


def load(
    data: Data,
    workspace: Path,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    train_on_prompt: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> Lessons:
    """Read, check and encode the sets that `data` names; hold out a share when no evaluation set is named."""
    folder = locate(data.folder, workspace, "data.folder")
    if not folder.is_dir():
        raise InputError("data.not_folder", "data.folder", folder=str(folder))
    chosen = [find(folder, name, f"data.train.{i}") for i, name in enumerate(data.train)]
    held = [find(folder, data.eval, "data.eval")] if data.eval else []

    def encoded(sets: list[Described], place: str) -> tuple[Encoded, int, int]:
        rows = chain.from_iterable(islice(conversations(s, folder, place), data.max_rows or None) for s in sets)
        found = encode(rows, tokenizer, data.cutoff, train_on_prompt=train_on_prompt, advance=advance)
        if not len(found[0]):
            raise InputError("data.no_target", place, cutoff=data.cutoff)
        return found

    train, cut, dropped = encoded(chosen, "data.train")
    if held:
        evaluation, more_cut, more_dropped = encoded(held, "data.eval")
        cut, dropped = cut + more_cut, dropped + more_dropped
    else:
        train, evaluation = split(train, data.eval_share, seed)
    return Lessons(train, evaluation, fingerprint(chosen + held, folder), cut, dropped)


def split(rows: Encoded, share: float, seed: int) -> tuple[Encoded, Encoded]:
    """Return (training rows, held-out rows); the same seed holds out the same rows. At least one row stays to learn."""
    count = min(max(round(len(rows) * share), share > 0), len(rows) - 1)
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))


def fingerprint(sets: Sequence[Described], folder: Path) -> str:
    """Return the sha256 over the files of the sets and the names that the description gives their columns."""
    total = hashlib.sha256()
    for described in sets:
        assert described.path is not None
        with regular(described.path, folder, "data.folder").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        names = described.names.model_dump() if described.names else {}
        total.update(json.dumps([described.name, described.rows, names, digest], sort_keys=True).encode())
    return total.hexdigest()


@dataclass(frozen=True)
class Padder:
    """Collator: pads rows at their end to the longest of the batch."""

    pad_id: Any  # an int: a tokenizer's attributes are annotated as anything

    def __call__(self, rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        ids_B_T = torch.full(shape, self.pad_id)
        labels_B_T, mask_B_T = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids_B_T[i, :length] = torch.from_numpy(row["input_ids"])
            labels_B_T[i, :length] = torch.from_numpy(row["labels"])
            mask_B_T[i, :length] = 1
        return {"input_ids": ids_B_T, "labels": labels_B_T, "attention_mask": mask_B_T}


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
