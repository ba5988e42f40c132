"""One row as the model gets it: the text, every token of it, and whether it is learned, only read, or cut away."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from core.data.encode import Encoder, kept, within
from core.data.render import SEAM, Piece, Span
from core.data.tokens import Tokens
from core.formats import Row


@dataclass(frozen=True)
class Shown:
    """A piece of a row: most rows are one."""

    text: str
    ids: list[int]
    tokens: list[str]
    """The stretch of the text that each token stands for."""
    learned: list[bool]
    kept: list[bool]
    special: list[bool]


def show(row: Row, encoder: Encoder, answer: int = 0) -> list[Shown]:
    """Return the pieces of a row with its answer of this number, cut where training would cut them."""
    made: list[Shown] = []
    (pieces,) = encoder.renderer.pieces([row], answer)
    for piece in pieces:
        text, tokens, spans, files_T = _read(piece, row, encoder, answer)
        ids_T, _, end_T = tokens
        answers_T = within(tokens, spans)
        learned_T = np.ones(len(ids_T), bool) if encoder.train_on_prompt else answers_T.copy()
        learned_T &= ~files_T
        kept_T = np.arange(len(ids_T))
        if len(ids_T) > encoder.cutoff and files_T.any():
            kept_T = kept_T[:0]  # no file can be cut
        elif len(ids_T) > encoder.cutoff and not piece.plain:
            kept_T = kept(answers_T, encoder.cutoff, encoder.truncation)
        learned_T[kept_T[:: encoder.cutoff]] = False  # nothing foretells the first of a row; plain texts make several
        bounds = [0, *np.maximum.accumulate(end_T).tolist()]
        parts = [text[begin:end].replace(SEAM, "") for begin, end in pairwise(bounds)]
        controls = special(encoder.tokens.tokenizer)
        stays_T = np.isin(np.arange(len(ids_T)), kept_T)
        made.append(Shown(text.replace(SEAM, ""), ids_T.tolist(), parts, learned_T.tolist(), stays_T.tolist(),
                          [token in controls for token in ids_T.tolist()]))  # fmt: skip
    return made


def _read(piece: Piece, row: Row, encoder: Encoder, answer: int) -> tuple[str, Tokens, list[Span], np.ndarray]:
    """Return (text, tokens, spans of answers, which tokens stand for files) of a piece."""
    if row.media and encoder.album:
        seen = encoder.album.read(piece, row, answer)
        return seen.text, seen.tokens, seen.spans, seen.files_T
    (tokens,) = encoder.tokens.encode([piece.text])
    return piece.text, tokens, piece.spans, np.zeros(len(tokens[0]), bool)


def special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of the control tokens."""
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
