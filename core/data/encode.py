"""Conversations to tokens and labels, through the chat template of the tokenizer.

The loss counts on the answers alone, their end-of-turn token included. Where an answer begins and ends is told by the
{% generation %} marks of the template, or, where it has none, by rendering the conversation up to there: both give
spans of characters of the one text that is tokenized, so that both give the same tokens and labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from core.errors import InputError
from core.formats import Message

IGNORED = -100
"""The label that the loss passes over (torch.nn.CrossEntropyLoss.ignore_index)."""
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
CHUNK = 256
"""Conversations rendered and tokenized in one go."""

Tokens = Sequence[int] | np.ndarray
Span = tuple[int, int]
"""First character and the one after the last."""
Piece = tuple[str, list[Span]]
"""A text that becomes a row, and the spans of it that are answers."""


@dataclass(frozen=True)
class Encoded:
    """Rows of tokens, end to end: row i is `starts[i]` to `starts[i + 1]`. A dataset as torch understands it."""

    ids_N: np.ndarray
    labels_N: np.ndarray
    starts_B1: np.ndarray

    def __len__(self) -> int:
        return len(self.starts_B1) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = slice(self.starts_B1[index], self.starts_B1[index + 1])
        return {"input_ids": self.ids_N[row], "labels": self.labels_N[row]}

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.starts_B1)

    def select(self, indices: Iterable[int]) -> Encoded:
        """Return these rows, in this order."""
        return pack([(row["input_ids"], row["labels"]) for row in map(self.__getitem__, indices)])


def pack(rows: Sequence[tuple[Tokens, Tokens]]) -> Encoded:
    """Lay rows of (ids, labels) end to end."""
    starts_B1 = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids_N, labels_N = (
        np.fromiter(chain.from_iterable(row[part] for row in rows), np.int32, starts_B1[-1]) for part in (0, 1)
    )
    return Encoded(ids_N, labels_N, starts_B1)


def encode(
    conversations: Iterable[list[Message]],
    tokenizer: PreTrainedTokenizerBase,
    cutoff: int,
    *,
    train_on_prompt: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[Encoded, int, int]:
    """Return (the rows, how many were cut, how many were dropped because no token of them is a target).

    A row longer than `cutoff` tokens keeps its beginning. `advance` hears how many conversations are done.
    """
    if not tokenizer.is_fast:
        raise InputError("data.slow_tokenizer", "model.path", tokenizer=type(tokenizer).__name__)
    pieces_of = _marked if MARK.search(tokenizer.get_chat_template()) else _by_prefix
    rows: list[tuple[Tokens, Tokens]] = []
    iterator, done, made, cut = iter(conversations), 0, 0, 0
    while chunk := list(islice(iterator, CHUNK)):
        for ids, labels in _tokenize(pieces_of(chunk, tokenizer), tokenizer, train_on_prompt):
            made, cut = made + 1, cut + (len(ids) > cutoff)
            if any(label != IGNORED for label in labels[1:cutoff]):  # the first token has none before it to predict it
                rows.append((ids[:cutoff], labels[:cutoff]))
        done += len(chunk)
        advance(done)
    return pack(rows), cut, made - len(rows)


def _tokenize(
    pieces: list[Piece], tokenizer: PreTrainedTokenizerBase, train_on_prompt: bool
) -> Iterable[tuple[list[int], list[int]]]:
    """Yield (ids, labels) of each piece: the tokens of its spans are targets."""
    texts = [text for text, _ in pieces]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    for ids, offsets, (_, spans) in zip(batch["input_ids"], batch["offset_mapping"], pieces, strict=True):
        if train_on_prompt:
            yield ids, list(ids)
            continue
        labels = [IGNORED] * len(ids)
        position = 0
        for begin, end in spans:
            while position < len(ids) and offsets[position][1] <= begin:
                position += 1
            while position < len(ids) and _within(offsets[position], end):
                labels[position] = ids[position]
                position += 1
        yield ids, labels


def _within(offset: Span, end: int) -> bool:
    """Whether a token begins before `end`; one of blanks only, whose offset is trimmed to nothing, ends by then."""
    return offset[0] < end or offset[0] == offset[1] == end


def _marked(chunk: list[list[Message]], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Render conversations; the spans are those between the {% generation %} marks, without empty answers."""
    texts, spans = _render(tokenizer, chunk, return_assistant_tokens_mask=True)
    for row, messages in enumerate(chunk):
        says = [bool(message["content"].strip()) for message in messages if message["role"] == "assistant"]
        if len(says) == len(spans[row]):  # else the template marks parts of answers
            spans[row] = list(compress(spans[row], says))
    return list(zip(texts, spans, strict=True))


def _by_prefix(chunk: list[list[Message]], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Render conversations; an answer spans what its turn adds to the conversation before it and its header.

    Where a template renders earlier turns in another way once later ones are there (without their reasoning, say),
    each answer becomes a piece of its own, with what the model has before it when it is asked.
    """
    turns = [(messages, i) for messages in chunk for i, m in enumerate(messages) if m["role"] == "assistant"]
    texts, _ = _render(tokenizer, chunk)
    heads, _ = _render(tokenizer, [messages[:i] for messages, i in turns], add_generation_prompt=True)
    wholes, _ = _render(tokenizer, [messages[: i + 1] for messages, i in turns])
    answers = zip(turns, heads, wholes, strict=True)
    pieces: list[Piece] = []
    for text, messages in zip(texts, chunk, strict=True):
        own: list[Piece] = []
        for (_, i), head, whole in islice(answers, sum(m["role"] == "assistant" for m in messages)):
            content = messages[i]["content"]
            if not whole.startswith(head):
                raise InputError("data.template_prefix", "model.path", turn=i + 1, text=content[:80])
            # a line break after the end-of-turn token is not the model's to write: generation ends before it
            end = len(whole) if whole.endswith(content) else len(whole.rstrip())
            own.append((whole, [(len(head), end)] if content.strip() else []))
        together = all(text.startswith(whole) for whole, _ in own)
        pieces += [(text, [span for _, spans in own for span in spans])] if together else own
    return pieces


def _render(
    tokenizer: PreTrainedTokenizerBase, conversations: list[list[Message]], **options: Any
) -> tuple[list[str], list[list[Span]]]:
    """Return the texts and, if asked for, the marked spans, by the sandboxed renderer behind apply_chat_template.

    apply_chat_template itself gives a mask of tokens, and loses every answer after one that begins with a blank.
    """
    options |= {"chat_template": tokenizer.get_chat_template(), **tokenizer.special_tokens_map}
    try:
        rendered: Any = render_jinja_template(conversations, **options)  # annotated as a text by mistake
    except TemplateError as error:
        raise InputError("data.template", "model.path", what=str(error)) from None
    return rendered
