"""Rows that are encoded while the model learns: nothing is read ahead but a buffer, however large the sets are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from torch.utils.data import IterableDataset

from core.data.encode import CHUNK, PAIRED, Counts, Encoder, Made, item
from core.data.pack import bins
from core.data.rows import Broken
from core.errors import InputError
from core.formats import Row
from core.sections import Data

Tokens = Any
"""input_ids, labels, and media where a row has any; of a comparison or feedback two such, as Pairs gives them."""


class Stream(IterableDataset):
    """Training rows without an end, the same for the same seed: a resumed run passes over what it has seen.

    The sets are mixed as the settings say; when all is read, it begins anew. A buffer is filled, and what comes next is
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
        """Yield rows as `mix` says, over and over."""
        while True:
            yield from self._pass(chance)

    def _pass(self, chance: random.Random) -> Iterator[Tokens]:
        """Yield the rows of all sets once: one set after the other, or by shares (without any, in turn)."""
        sources = [self._rows(rows) for rows in self.sets]
        if self.data.mix == "concat":
            yield from chain.from_iterable(sources)
            return
        ahead = [next(source, None) for source in sources]
        alive, ended, turn = list(range(len(sources))), set[int](), 0
        while alive:
            shares = [self.data.shares[at] for at in alive] if self.data.shares else None
            at, turn = chance.choices(alive, shares)[0] if shares else alive[turn % len(alive)], turn + 1
            if (row := ahead[at]) is not None:
                yield row
            ahead[at] = next(sources[at], None)
            if ahead[at] is not None:
                continue
            ended.add(at)
            if self.data.mix == "interleave_under" or len(ended) == len(sources):
                return
            if self.data.mix == "interleave_once":
                alive.remove(at)
            else:
                sources[at] = self._rows(self.sets[at])
                ahead[at] = next(sources[at], None)

    def _rows(self, rows: Callable[[], Iterator[Row]]) -> Iterator[Tokens]:
        """Yield the rows of one set, encoded. Raises InputError when there is nothing to learn in it."""
        found, reader = False, islice(rows(), self.data.max_rows or None)
        while chunk := list(islice(reader, CHUNK)):
            made = [self._item(one) for one in self.encoder.chunk(chunk)]
            found = found or bool(made)
            yield from zip(made[::2], made[1::2], strict=True) if self.encoder.kind in PAIRED else made
        if not found:
            raise InputError("data.no_target", "data.train", cutoff=self.data.cutoff)

    def _item(self, one: Made) -> dict[str, Any]:
        liked = {"liked": one.liked} if self.encoder.kind == "feedback" else {}
        return item(one.ids_T, one.learned_T, one.media) | liked

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
