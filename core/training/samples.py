"""Answers of the model while it learns, for people to read: to some held-out questions, asked at each evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from core.data.album import Album
from core.data.encode import IGNORED, Encoded
from core.generation import Generation
from core.models import rope
from core.models.answering import draw, sampling
from core.models.s2 import NAME as S2
from core.models.varlen import NAME as VARLEN
from core.watching import Watching
from core.workspace import Context


class Samples:
    """The questions, and who asks them."""

    def __init__(
        self, watching: Watching, context: Context, tokenizer: PreTrainedTokenizerBase, rows: Encoded, size: int,
        album: Album | None = None,
    ) -> None:  # fmt: skip
        """rows: the held-out ones, of which some are taken, evenly from all over; size: rows of an example."""
        self.context, self.tokenizer, self.album = context, tokenizer, album
        examples = len(rows) // size
        chosen = np.linspace(0, examples - 1, min(watching.samples, examples)).astype(int)
        self.rows = [rows[size * index] for index in chosen]
        self.longest = watching.sample_tokens

    def ask(self, trainer: Trainer, batch: int) -> None:
        """Let the model answer, `batch` questions at a time, and write a sample event for each."""
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        model: Any = trained.get_base_model() if isinstance(trained, PeftModel) else trained
        limit = rope.context(model.config)
        tokens = min(self.longest, limit - 1)
        settings = sampling(Generation(max_new_tokens=tokens), model, self.tokenizer)
        pairs = [question(row["input_ids"], row["labels"]) for row in self.rows]
        with answering(model), trainer.accelerator.autocast():
            for first in range(0, len(pairs), batch):
                part = slice(first, first + batch)
                prompts = [prompt_T[-(limit - tokens) :].tolist() for prompt_T, _ in pairs[part]]
                ids_B_T = draw(model, prompts, settings, self.context.stop, beside=self._beside(self.rows[part]))
                answers = texts(self.tokenizer, ids_B_T)
                if self.context.stop.is_set():
                    return  # the last answers were broken off
                sides = (texts(self.tokenizer, side) for side in zip(*pairs[part], strict=True))
                asked = zip(*sides, answers, strict=True)
                for index, (prompt, reference, answer) in enumerate(asked, first):
                    self.context.events.write("sample", step=trainer.state.global_step, index=index, prompt=prompt,
                                              reference=reference, answer=answer)  # fmt: skip

    def _beside(self, rows: list[dict[str, Any]]) -> Any:
        """Return what gives the model the files of some rows; None where there are none."""
        album, media = self.album, [row.get("media", "") for row in rows]
        return (lambda starts, width: album.beside(media, starts, width)) if album and any(media) else None


class Drawn:
    """Answers that were drawn to learn from, each to a question of its own, shown as often as others are asked."""

    def __init__(self, watching: Watching, context: Context, tokenizer: PreTrainedTokenizerBase) -> None:
        self.count, self.context, self.tokenizer = watching.samples, context, tokenizer

    def show(self, trainer: Trainer, rows: Sequence[Any], wanted: Sequence[Any], scores: Sequence[float]) -> None:
        """Write a sample event for some rows, which are questions with their answers, if it is time for it."""
        step = trainer.state.global_step
        if step % int(trainer.args.eval_steps or 1):
            return
        asked, drawn = zip(*(question(row["input_ids"], row["labels"]) for row in rows[: self.count]), strict=True)
        sides = (texts(self.tokenizer, side) for side in (asked, wanted[: self.count], drawn))
        for index, (prompt, reference, answer) in enumerate(zip(*sides, strict=True)):
            self.context.events.write("sample", step=step, index=index, prompt=prompt, reference=reference,
                                      answer=answer, reward=scores[index])  # fmt: skip


def texts(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Any]) -> list[str]:
    """Return rows of tokens in words."""
    said = tokenizer.batch_decode([list(map(int, row)) for row in rows], skip_special_tokens=True)
    return [text.strip() for text in said]


def question(ids_T: np.ndarray, labels_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (what is asked, the answer that is right) of a row: the last stretch that is learned is the answer.

    A row that is learned from its beginning asks nothing: its second half continues the first.
    """
    learned_T = labels_T != IGNORED
    end = int(np.flatnonzero(learned_T)[-1]) + 1
    unlearned = np.flatnonzero(~learned_T[:end])
    begin = int(unlearned[-1]) + 1
    begin = begin if begin > 1 else end // 2  # the first token of a row is never learned
    return ids_T[:begin], ids_T[begin:end]


@contextmanager
def answering(model: PreTrainedModel) -> Iterator[None]:
    """Let a model in training answer, with a cache, which attention over rows in one line can't do."""
    before: Any = model.config._attn_implementation
    if before in (VARLEN, S2):
        model.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            yield
    finally:
        if before in (VARLEN, S2):
            model.set_attn_implementation(before)
