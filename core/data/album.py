"""Rows with files to tokens, and back to their files when a batch is due: what is decoded is never kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.data import media
from core.data.media import Sight
from core.data.places import count, placed
from core.data.render import SEAM, Piece, Span
from core.data.tokens import Tokens
from core.errors import InputError
from core.formats import Row
from core.models.packages import require
from core.models.senses import Read, Senses, View

JOINER = "\u2060"
"""Set in the place of a SEAM: an invisible character that keeps what somebody typed from being a control token."""


@dataclass(frozen=True)
class Seen:
    """A piece of a row with files as the model gets it."""

    text: str
    """With a placeholder for each token that stands for a part of a file."""
    tokens: Tokens
    spans: list[Span]
    """Of the answers in that text."""
    files_T: np.ndarray
    """Which tokens stand for files."""
    media: str
    """What is kept beside the tokens (media.Sight as JSON)."""


@dataclass(frozen=True)
class Album:
    """Opens the files of one data folder for the processor of one model."""

    senses: Senses
    folder: Path

    def read(self, piece: Piece, row: Row, answer: int = 0) -> Seen:
        """Return a piece of a row with the answer of this number."""
        messages = placed(row.messages(answer), row.media)[: piece.turns]
        files = {kind: paths[: count(messages, kind)] for kind, paths in row.media.items()}
        read, kept = self.keep(piece.text, files)
        files_T = np.isin(read.ids_T, self.senses.ids)
        for _, begin, end in read.grown:
            files_T |= (read.end_T > begin) & (read.begin_T < end)
        tokens = read.ids_T, read.begin_T, read.end_T
        return Seen(read.text, tokens, _moved(piece.spans, read.grown), files_T, kept)

    def keep(self, text: str, files: dict[str, list[str]]) -> tuple[Read, str]:
        """Return a rendered text with its files as tokens, and what is to be kept beside them."""
        sight = Sight(text.replace(SEAM, JOINER), files, media.stamps(files, self.folder))
        return self.senses.read(self._view(sight)), sight.dump()

    def beside(self, rows: Sequence[str], starts: Sequence[int], width: int) -> dict[str, torch.Tensor]:
        """Return what a batch needs beside its tokens; rows: what `read` gave to keep, "" for a row without files.

        Raises InputError for a file that was changed since.
        """
        return self.senses.beside([self._view(Sight.load(row)) if row else None for row in rows], starts, width)

    def holds(self, rows: Iterable[str]) -> bool:
        """Return whether the files of rows are still those that were read."""
        sights = map(Sight.load, filter(None, rows))
        return all(media.stamps(sight.files, self.folder) == sight.stamps for sight in sights)

    def _view(self, sight: Sight) -> View:
        """Open the files of a row."""
        if media.stamps(sight.files, self.folder) != sight.stamps:
            raise _changed(sight)
        opened = {kind: [self._open(kind, path, sight) for path in paths] for kind, paths in sight.files.items()}
        return View(sight.text, opened)

    def _open(self, kind: str, path: str, sight: Sight) -> Any:
        file = media.located(path, self.folder)
        if file is None:
            raise _changed(sight)
        if kind == "images":
            return media.image(file, lambda huge: _changed(sight))
        if kind == "audios":
            return self._sound(file)
        require("torchvision", "data.train")
        return str(file)  # the processor of videos opens it

    def _sound(self, file: Path) -> np.ndarray:
        """Return a sound, mono, at the rate that the processor takes."""
        for package in ("soundfile", "soxr"):
            require(package, "data.train")
        from transformers.audio_utils import load_audio

        return load_audio(str(file), sampling_rate=self.senses.rate, backend="soundfile")


def _changed(sight: Sight) -> InputError:
    names = ", ".join(path for paths in sight.files.values() for path in paths)
    return InputError("data.media_changed", "data.folder", names=names[:200])


def _moved(spans: list[Span], grown: list[tuple[int, int, int]]) -> list[Span]:
    """Return spans of a text where they lie in the text with expanded placeholders."""

    def moved(at: int) -> int:
        gained = [end - ended for ended, _, end in grown if ended <= at]
        return at + (gained[-1] if gained else 0)

    return [(moved(begin), moved(end)) for begin, end in spans]
