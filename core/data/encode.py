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

Span = tuple[int, int]
"""First character and the one after the last."""


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


def pack(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Encoded:
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
    marked = bool(MARK.search(tokenizer.get_chat_template()))
    rows: list[tuple[Sequence[int], Sequence[int]]] = []
    iterator, done, cut = iter(conversations), 0, 0
    while chunk := list(islice(iterator, CHUNK)):
        texts, spans = (_marked if marked else _by_prefix)(chunk, tokenizer)
        for ids, labels in _tokenize(texts, spans, tokenizer, train_on_prompt):
            cut += len(ids) > cutoff
            if any(label != IGNORED for label in labels[1:cutoff]):  # the first token has none before it to predict it
                rows.append((ids[:cutoff], labels[:cutoff]))
        done += len(chunk)
        advance(done)
    return pack(rows), cut, done - len(rows)


def _tokenize(
    texts: list[str], spans: list[list[Span]], tokenizer: PreTrainedTokenizerBase, train_on_prompt: bool
) -> Iterable[tuple[list[int], list[int]]]:
    """Yield (ids, labels) of each text: the tokens of its spans are targets."""
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    for ids, offsets, targets in zip(batch["input_ids"], batch["offset_mapping"], spans, strict=True):
        if train_on_prompt:
            yield ids, list(ids)
            continue
        labels = [IGNORED] * len(ids)
        position = 0
        for begin, end in targets:
            while position < len(ids) and offsets[position][1] <= begin:
                position += 1
            while position < len(ids) and _within(offsets[position], end):
                labels[position] = ids[position]
                position += 1
        yield ids, labels


def _within(offset: Span, end: int) -> bool:
    """Whether a token begins before `end`; one of blanks only, whose offset is trimmed to nothing, ends by then."""
    return offset[0] < end or offset[0] == offset[1] == end


def _marked(chunk: list[list[Message]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[list[Span]]]:
    """Render conversations; the spans are those between the {% generation %} marks, without empty answers."""
    texts, spans = _render(tokenizer, chunk, return_assistant_tokens_mask=True)
    for row, messages in enumerate(chunk):
        says = [bool(m["content"].strip()) for m in messages if m["role"] == "assistant"]
        if len(says) == len(spans[row]):  # else the template marks parts of answers
            spans[row] = list(compress(spans[row], says))
    return texts, spans


def _by_prefix(chunk: list[list[Message]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[list[Span]]]:
    """Render conversations; an answer spans what its turn adds to the conversation before it with its header.

    Raises InputError for a template that renders earlier turns in another way once a later one is there.
    """
    turns = [(row, i) for row, messages in enumerate(chunk) for i, m in enumerate(messages) if m["role"] == "assistant"]
    texts, _ = _render(tokenizer, chunk)
    heads, _ = _render(tokenizer, [chunk[row][:i] for row, i in turns], add_generation_prompt=True)
    upto, _ = _render(tokenizer, [chunk[row][: i + 1] for row, i in turns])
    spans: list[list[Span]] = [[] for _ in chunk]
    for (row, i), head, through in zip(turns, heads, upto, strict=True):
        if not texts[row].startswith(through) or not through.startswith(head):
            raise InputError("data.template_prefix", "model.path", turn=i + 1, text=chunk[row][i]["content"][:80])
        content = chunk[row][i]["content"]
        # a line break after the end-of-turn token is not the model's to write: generation ends before it
        end = len(through) if through.endswith(content) else len(through.rstrip())
        if content.strip():
            spans[row].append((len(head), end))
    return texts, spans


def _render(
    tokenizer: PreTrainedTokenizerBase, conversations: list[list[Message]], **options: bool
) -> tuple[list[str], list[list[Span]]]:
    """Return the texts and, if asked for, the marked spans, by the sandboxed renderer behind apply_chat_template.

    apply_chat_template itself gives a mask of tokens, and loses every answer after one that begins with a blank.
    """
    try:
        return render_jinja_template(
            conversations, chat_template=tokenizer.get_chat_template(), **options, **tokenizer.special_tokens_map
        )
    except TemplateError as error:
        raise InputError("data.template", "model.path", what=str(error)) from None
