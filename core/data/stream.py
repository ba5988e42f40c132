"""Rows that are encoded while the model learns: nothing is read ahead but a buffer, however large the sets are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from torch.utils.data import IterableDataset

from core.data.encode import CHUNK, IGNORED, Counts, Encoder
from core.data.pack import bins
from core.data.rows import Broken
from core.errors import InputError
from core.formats import Row
from core.sections import Data

Tokens = dict[str, np.ndarray]


class Stream(IterableDataset):
    """Training rows without an end, the same for the same seed: a resumed run passes over what it has seen.

    Sets take turns, or are drawn from by shares; one that ends begins anew. A buffer is filled, and what comes next is
    drawn from it by chance.
    """

    def __init__(
        self,
        sets: Sequence[Callable[[], Iterator[Row]]],
        encoder: Encoder,
        data: Data,
        seed: int,
        *,
        pack: bool,
        broken: Broken | None,
    ) -> None:
        self.sets, self.encoder, self.data, self.seed = sets, encoder, data, seed
        self.pack, self.broken = pack, broken

    @property
    def counts(self) -> Counts:
        """What became of the rows up to now; one that was read twice counts twice."""
        return replace(self.encoder.counts, broken=self.broken.count if self.broken else 0)

    def __iter__(self) -> Iterator[Tokens | list[Tokens]]:
        chance = random.Random(self.seed)
        shuffled = self._shuffled(self._drawn(chance), chance)
        return self._packs(shuffled, chance) if self.pack else shuffled

    def _drawn(self, chance: random.Random) -> Iterator[Tokens]:
        """Yield rows of the sets in turn, or by their shares."""
        sources = [self._rows(rows) for rows in self.sets]
        turn = 0
        while True:
            if self.data.shares:
                (source,) = chance.choices(sources, self.data.shares)
            else:
                source, turn = sources[turn % len(sources)], turn + 1
            yield next(source)

    def _rows(self, rows: Callable[[], Iterator[Row]]) -> Iterator[Tokens]:
        """Yield the rows of one set, encoded, again and again."""
        found = True
        while found:
            found = False
            reader = islice(rows(), self.data.max_rows or None)
            while chunk := list(islice(reader, CHUNK)):
                for ids_T, learned_T in self.encoder.chunk(chunk):
                    found = True
                    yield {"input_ids": ids_T, "labels": np.where(learned_T, ids_T, IGNORED)}
        raise InputError("data.no_target", "data.train", cutoff=self.data.cutoff)

    def _shuffled(self, rows: Iterator[Tokens], chance: random.Random) -> Iterator[Tokens]:
        buffer = list(islice(rows, self.data.buffer))
        for row in rows:
            at = chance.randrange(len(buffer))
            yield buffer[at]
            buffer[at] = row

    def _packs(self, rows: Iterator[Tokens], chance: random.Random) -> Iterator[list[Tokens]]:
        """Yield packs, each time of as many rows as the buffer holds."""
        while True:
            chunk = list(islice(rows, self.data.buffer))
            packs = bins([len(row["input_ids"]) for row in chunk], self.data.cutoff)
            chance.shuffle(packs)  # they come with the longest rows first
            yield from ([chunk[row] for row in pack] for pack in packs)
