"""Standard rows to tokens: rendered, tokenized, what is learned marked, cut to length."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from core.data.album import Album
from core.data.render import Piece, Renderer, Span
from core.data.tokens import Tokenizer, Tokens
from core.formats import Row

IGNORED = -100
"""The label that the loss passes over (torch.nn.CrossEntropyLoss.ignore_index)."""
PAIRED = ("ranking", "feedback")
"""Kinds of examples that are two rows each."""
CHUNK = 256
"""Rows rendered and tokenized in one go."""


class Made(NamedTuple):
    """What became of a row, or of a part of one."""

    ids_T: np.ndarray
    learned_T: np.ndarray
    source: int
    """The number of the row."""
    media: str = ""
    liked: bool = False


@dataclass(frozen=True)
class Encoded:
    """Rows of tokens, end to end: row i is `starts[i]` to `starts[i + 1]`. A dataset as torch understands it."""

    ids_N: np.ndarray
    learned_N: np.ndarray
    """Whether the loss counts a token; never the first of a row, which nothing foretells."""
    starts_B1: np.ndarray
    source_B: np.ndarray
    """The number of the row that each comes from: one row may make several, which belong on one side of a split."""
    media_B: np.ndarray | None = None
    """What belongs to each row beside its tokens (media.Sight, as JSON); "" for a row of text alone, None for all."""
    liked_B: np.ndarray | None = None
    """Whether each answer was liked; None where nobody was asked."""

    def __len__(self) -> int:
        return len(self.starts_B1) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = slice(self.starts_B1[index], self.starts_B1[index + 1])
        return item(self.ids_N[row], self.learned_N[row], "" if self.media_B is None else self.media_B[index])

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.starts_B1)

    def examples(self, kind: str) -> Encoded:
        """Return the rows with the two of an example as one, where they are paired."""
        return replace(self, starts_B1=self.starts_B1[::2]) if kind in PAIRED else self

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
        media_B = None if self.media_B is None else self.media_B[indices]
        liked_B = None if self.liked_B is None else self.liked_B[indices]
        ids_N, learned_N = self.ids_N[where_N], self.learned_N[where_N]
        return Encoded(ids_N, learned_N, starts_B1, self.source_B[indices], media_B, liked_B)


def item(ids_T: np.ndarray, learned_T: np.ndarray, media: str) -> dict[str, Any]:
    """Return one row as a collator takes it: input_ids, labels, and media where it has any."""
    row = {"input_ids": ids_T, "labels": np.where(learned_T, ids_T, IGNORED)}
    return row | ({"media": media} if media else {})


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Lay sets end to end."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Encoded(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(1, np.int64), np.zeros(0, np.int64))
    lengths = np.concatenate([part.lengths_B for part in parts])
    starts_B1 = np.concatenate(([0], np.cumsum(lengths)))
    media = [np.full(len(part), "", object) if part.media_B is None else part.media_B for part in parts]
    before = np.cumsum([0, *(int(part.source_B.max(initial=-1)) + 1 for part in parts)])
    return Encoded(
        np.concatenate([part.ids_N for part in parts]),
        np.concatenate([part.learned_N for part in parts]),
        starts_B1,
        np.concatenate([part.source_B + number for part, number in zip(parts, before, strict=False)]),
        np.concatenate(media) if any(part.media_B is not None for part in parts) else None,
        np.concatenate([part.liked_B for part in parts if part.liked_B is not None]) if parts[0].liked_B is not None
        else None,
    )  # fmt: skip


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
    """Pieces without a token to learn, and comparisons of two answers that are the same."""
    escaped: int = 0
    """Messages in which somebody typed a control token."""
    plain: int = 0
    """Rows that are texts without turns."""
    repeated: int = 0
    """Rows of tokens that are the same as an earlier one of their set; of a stream nobody counts them."""
    unseen: int = 0
    """Pieces with files that are longer than the cutoff: an image can't be cut."""

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
    album: Album | None = None
    """What reads rows with files; None where the model takes none."""
    kind: str = "answer"
    """What is learned from a row: its answer, a ranking of two, or feedback (Row.kind)."""
    counts: Counts = field(default_factory=Counts)
    earlier: Row | None = None
    """The last row of the chunk before."""

    def encode(self, rows: Iterable[Row], advance: Callable[[int], None] = lambda done: None) -> Encoded:
        """Return the rows as tokens; `counts` tells what became of each. `advance` hears how many rows are done."""
        made: list[Made] = []
        iterator = iter(rows)
        while chunk := list(islice(iterator, CHUNK)):
            made += self.chunk(chunk)
            advance(self.counts.rows)
        if not made:
            return joined([])
        ids, learned, source, media, liked = zip(*made, strict=True)
        return Encoded(
            np.concatenate(ids),
            np.concatenate(learned),
            np.concatenate(([0], np.cumsum([len(row) for row in ids], dtype=np.int64))),
            np.array(source, np.int64),
            np.array(media, object) if any(media) else None,
            np.array(liked) if self.kind == "feedback" else None,
        )

    def chunk(self, rows: list[Row]) -> list[Made]:
        """Return the pieces of some rows that have anything to learn; of a comparison or feedback, two of each row."""
        before = self.counts.rows
        self.counts.rows += len(rows)
        self.counts.plain += sum(row.plain for row in rows)
        if self.kind not in PAIRED:
            return [made for own in self._read(rows, before) for made in own]
        first = self._read(rows, before)
        second = self._read(rows, before, 1) if self.kind == "ranking" else self._read(self._mismatched(rows), before)
        pairs = [(one[0], other[0]) for one, other in zip(first, second, strict=True) if one and other]
        if self.kind == "ranking":  # beyond the cutoff they may differ, but nothing is learned of that
            pairs = [(one, other) for one, other in pairs if not np.array_equal(one.ids_T, other.ids_T)]
        self.counts.dropped += len(rows) - len(pairs)
        return [made for pair in pairs for made in pair]

    def _mismatched(self, rows: list[Row]) -> list[Row]:
        """Return the rows, each with the answer of the one before: what KTO measures the distance by."""
        answers = [(self.earlier or rows[-1]).response, *(row.response for row in rows)]
        self.earlier = rows[-1]
        return [replace(row, response=answer) for row, answer in zip(rows, answers, strict=False)]

    def _read(self, rows: list[Row], before: int, answer: int = 0) -> list[list[Made]]:
        """Return what is made of each row with this answer; nothing where there is nothing to learn."""
        rendered = self.renderer.pieces(rows, answer)
        self.counts.escaped = self.renderer.escaped
        seen = [bool(row.media and self.album) for row in rows]
        texts = [piece.text for own, sees in zip(rendered, seen, strict=True) if not sees for piece in own]
        encoded = iter(self.tokens.encode(texts))
        made: list[list[Made]] = []
        for number, (row, own) in enumerate(zip(rows, rendered, strict=True), before):
            made.append([])
            for piece in own:
                if row.media and self.album:
                    found = self._seen(self.album, piece, row, answer)
                else:
                    found = [(*part, "") for part in self.fitted(piece, next(encoded))]
                for ids_T, learned_T, media in found:
                    learned_T[:1] = False
                    if learned_T.any():
                        made[-1].append(Made(ids_T, learned_T, number, media, bool(row.label)))
                    elif self.kind not in PAIRED:
                        self.counts.dropped += 1
        return made

    def _seen(self, album: Album, piece: Piece, row: Row, answer: int) -> list[tuple[np.ndarray, np.ndarray, str]]:
        """Return a piece with files, placeholders never learned; none where it is too long, for no file can be cut."""
        found = album.read(piece, row, answer)
        ids_T = found.tokens[0]
        if len(ids_T) > self.cutoff:
            self.counts.unseen += 1
            return []
        answers_T = np.ones(len(ids_T), bool) if self.train_on_prompt else within(found.tokens, found.spans)
        return [(ids_T, answers_T & ~found.files_T, found.media)]

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
