"""Standard rows to tokens: rendered, tokenized, what is learned marked, cut to length."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, islice, pairwise

import numpy as np

from core.data.render import Piece, Renderer, Span
from core.data.tokens import Tokenizer, Tokens
from core.formats import Row

IGNORED = -100
"""The label that the loss passes over (torch.nn.CrossEntropyLoss.ignore_index)."""
CHUNK = 256
"""Rows rendered and tokenized in one go."""


@dataclass(frozen=True)
class Encoded:
    """Rows of tokens, end to end: row i is `starts[i]` to `starts[i + 1]`. A dataset as torch understands it."""

    ids_N: np.ndarray
    learned_N: np.ndarray
    """Whether the loss counts a token; never the first of a row, which nothing foretells."""
    starts_B1: np.ndarray
    source_B: np.ndarray
    """The number of the row that each comes from: one row may make several, which belong on one side of a split."""

    def __len__(self) -> int:
        return len(self.starts_B1) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = slice(self.starts_B1[index], self.starts_B1[index + 1])
        ids_T = self.ids_N[row]
        return {"input_ids": ids_T, "labels": np.where(self.learned_N[row], ids_T, IGNORED)}

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.starts_B1)

    @property
    def repeated(self) -> int:
        """How many rows are the same as an earlier one."""
        bounds = pairwise(self.starts_B1.tolist())
        return len(self) - len({hashlib.blake2b(self.ids_N[begin:end].tobytes()).digest() for begin, end in bounds})

    def select(self, indices: Sequence[int] | np.ndarray) -> Encoded:
        """Return these rows, in this order."""
        indices = np.asarray(indices, np.int64)
        lengths_B = self.lengths_B[indices]
        starts_B1 = np.concatenate(([0], np.cumsum(lengths_B)))
        # position in the new row + where the old one starts
        where_N = np.arange(starts_B1[-1]) + np.repeat(self.starts_B1[indices] - starts_B1[:-1], lengths_B)
        return Encoded(self.ids_N[where_N], self.learned_N[where_N], starts_B1, self.source_B[indices])


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Lay sets end to end."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Encoded(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(1, np.int64), np.zeros(0, np.int64))
    lengths = np.concatenate([part.lengths_B for part in parts])
    starts_B1 = np.concatenate(([0], np.cumsum(lengths)))
    before = np.cumsum([0, *(int(part.source_B.max(initial=-1)) + 1 for part in parts)])
    return Encoded(
        np.concatenate([part.ids_N for part in parts]),
        np.concatenate([part.learned_N for part in parts]),
        starts_B1,
        np.concatenate([part.source_B + number for part, number in zip(parts, before, strict=False)]),
    )


@dataclass
class Counts:
    """What happened to rows on their way: no row vanishes uncounted."""

    rows: int = 0
    """Rows read and in order."""
    broken: int = 0
    """Rows passed over because they are broken."""
    cut: int = 0
    """Pieces longer than the cutoff."""
    dropped: int = 0
    """Pieces without a token to learn."""
    escaped: int = 0
    """Messages in which somebody typed a control token."""
    plain: int = 0
    """Rows that are texts without turns."""
    repeated: int = 0
    """Rows of tokens that are the same as an earlier one of their set; of a stream nobody counts them."""

    @property
    def all_plain(self) -> bool:
        """Whether all that is learned are texts without turns."""
        return 0 < self.rows == self.plain

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)))


@dataclass
class Encoder:
    """Encodes rows for one tokenizer with one set of settings."""

    renderer: Renderer
    tokens: Tokenizer
    cutoff: int
    truncation: str = "end"
    train_on_prompt: bool = False
    counts: Counts = field(default_factory=Counts)

    def encode(self, rows: Iterable[Row], advance: Callable[[int], None] = lambda done: None) -> Encoded:
        """Return the rows as tokens; `counts` tells what became of each. `advance` hears how many rows are done."""
        made: list[tuple[np.ndarray, np.ndarray, int]] = []
        iterator = iter(rows)
        while chunk := list(islice(iterator, CHUNK)):
            made += self.chunk(chunk)
            advance(self.counts.rows)
        if not made:
            return joined([])
        ids, learned, source = zip(*made, strict=True)
        starts_B1 = np.concatenate(([0], np.cumsum([len(row) for row in ids], dtype=np.int64)))
        return Encoded(np.concatenate(ids), np.concatenate(learned), starts_B1, np.array(source, np.int64))

    def chunk(self, rows: list[Row]) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Return (ids, learned, number of the row) of the pieces of some rows that have anything to learn."""
        rendered = self.renderer.pieces(rows)
        pieces = list(chain.from_iterable(rendered))
        source = np.repeat(np.arange(len(rows)), [len(own) for own in rendered]) + self.counts.rows
        self.counts.rows += len(rows)
        self.counts.plain += sum(row.plain for row in rows)
        self.counts.escaped = self.renderer.escaped
        made: list[tuple[np.ndarray, np.ndarray, int]] = []
        encoded = self.tokens.encode([piece.text for piece in pieces])
        for piece, tokens, row in zip(pieces, encoded, source.tolist(), strict=True):
            for ids_T, learned_T in self.fitted(piece, tokens):
                learned_T[:1] = False
                if learned_T.any():
                    made.append((ids_T, learned_T, row))
                else:
                    self.counts.dropped += 1
        return made

    def fitted(self, piece: Piece, tokens: Tokens) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return a piece with what is learned, no longer than the cutoff: a plain text in several parts, others cut."""
        ids_T, _, _ = tokens
        answers_T = within(tokens, piece.spans)
        learned_T = np.ones(len(ids_T), bool) if self.train_on_prompt else answers_T
        if len(ids_T) <= self.cutoff:
            return [(ids_T, learned_T)]
        if piece.plain:
            cuts = range(0, len(ids_T), self.cutoff)
            return [(ids_T[at : at + self.cutoff], learned_T[at : at + self.cutoff]) for at in cuts]
        self.counts.cut += 1
        kept_T = kept(answers_T, self.cutoff, self.truncation)
        return [(ids_T[kept_T], learned_T[kept_T])]


def within(tokens: Tokens, spans: list[Span]) -> np.ndarray:
    """Return, for each token, whether it lies in a span: it ends after its begin and begins before its end."""
    ids_T, begin_T, end_T = tokens
    learned_T = np.zeros(len(ids_T), bool)
    for begin, end in spans:
        first = int(np.searchsorted(end_T, begin, "right"))
        last = int(np.searchsorted(begin_T, end, "left"))
        # a token of blanks only may have its offsets trimmed to nothing, at its end
        while last < len(ids_T) and begin_T[last] == end_T[last] == end:
            last += 1
        learned_T[first:last] = True
    return learned_T


def kept(answers_T: np.ndarray, cutoff: int, truncation: str) -> np.ndarray:
    """Return the positions that stay of a row that is too long; answers_T: what of it are answers.

    "end" loses its end, "start" its beginning; "prompt" loses the middle of what stands before the last answer, and of
    the answer only what does not fit into three quarters of the cutoff.
    """
    length = len(answers_T)
    if truncation == "end":
        return np.arange(cutoff)
    if truncation == "start" or not answers_T.any():
        return np.arange(length - cutoff, length)
    last = int(np.flatnonzero(answers_T)[-1]) + 1
    asked = np.flatnonzero(~answers_T[:last])
    begin = int(asked[-1]) + 1 if len(asked) else 0
    room = max(cutoff - (length - begin), min(begin, cutoff // 4))
    head = room // 2
    answer = min(length - begin, cutoff - room)
    return np.concatenate([
        np.arange(head), np.arange(begin - (room - head), begin), np.arange(begin, begin + answer)
    ])  # fmt: skip
