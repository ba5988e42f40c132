"""Texts to tokens, fast: by tiktoken where that is proven to give the tokenizer's own ids, else by the tokenizer.

A byte-level BPE splits a text into words by a pattern and merges the parts of each word by rank. tiktoken does so
several times faster, but knows only ranks of tokens, where `tokenizers` knows which pairs may merge. Take the first
step at which the two differ: tiktoken makes a token t of two parts that are no pair. All steps before it, within the
bytes of t, are those that `tokenizers` takes when it encodes these bytes alone, so there it is stuck at the two parts.
Hence if it encodes the bytes of every token as that token, they never differ. Tokens for which that fails, and those
that contain one, are doubtful; a text with a doubtful token goes to the tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise, permutations, product
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from core.data.render import SEAM, controls
from core.errors import InputError

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern that ByteLevel has of its own."""
GPT2_DIGITS = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
"""The same behind a Digits step, which first sets every digit apart."""
DIGITS = {"type": "Digits", "individual_digits": True}
WORTHWHILE = 1000
"""Texts after which looking at each token of a vocabulary has paid."""

Tokens = tuple[np.ndarray, np.ndarray, np.ndarray]
"""ids, first character, character after the last; of one text."""


class Tokenizer:
    """Encodes texts as they stand: special tokens in them are known, none are added."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise InputError("data.slow_tokenizer", "model.path", tokenizer=type(tokenizer).__name__)
        self.tokenizer, self.done = tokenizer, 0

    @cached_property
    def fast(self) -> _Fast | None:
        """The proven way around, or None where the tokenizer is of another kind."""
        return _prepare(self.tokenizer)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text; a SEAM in it is a border of tokens and belongs to none of them."""
        if any(SEAM in text for text in texts):
            parts = [text.split(SEAM) for text in texts]
            first = self.encode([own[0] for own in parts])
            rest = iter(self._inside([part for own in parts for part in own[1:]]))
            return [
                _joined([tokens, *islice(rest, len(own) - 1)], own) for tokens, own in zip(first, parts, strict=True)
            ]
        self.done += len(texts)
        if self.done <= WORTHWHILE or self.fast is None:
            return self._slow(texts)
        made = self.fast.encode(texts)
        doubtful = [index for index, tokens in enumerate(made) if tokens is None]
        again = iter(self._slow([texts[index] for index in doubtful]) if doubtful else [])
        return [next(again) if tokens is None else tokens for tokens in made]

    def _inside(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of texts that go on in the middle of a word: no blank is set before them."""
        if self.bare is None:
            return self.encode(texts)
        # what is behind a control token begins anew
        heads = [self.controls.split(text, maxsplit=1)[0] for text in texts]
        tails = [text[len(head) :] for text, head in zip(texts, heads, strict=True)]
        made = []
        for head, tail, behind in zip(heads, tails, self.encode(tails), strict=True):
            found = self.bare.encode(head, add_special_tokens=False)
            begin_end = np.array(found.offsets, np.int32).reshape(-1, 2)
            own = np.array(found.ids, np.int32), begin_end[:, 0], begin_end[:, 1]
            made.append(_joined([own, behind], [head, tail], 0))
        return made

    @cached_property
    def bare(self) -> Backend | None:
        """The tokenizer without the blank that it sets before a text; None where it sets none."""
        backend: Any = self.tokenizer
        spec = json.loads(backend.backend_tokenizer.to_str())
        if not any(_sets_blank(step) for step in _steps(spec)):
            return None
        for key in ("normalizer", "pre_tokenizer"):
            spec[key] = _without_blank(spec[key])
        return Backend.from_str(json.dumps(spec))

    @cached_property
    def controls(self) -> re.Pattern[str]:
        return controls(self.tokenizer)

    def _slow(self, texts: Sequence[str]) -> list[Tokens]:
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        made: list[Tokens] = []
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            begin_end = np.array(offsets, np.int32).reshape(-1, 2)
            made.append((np.array(ids, np.int32), begin_end[:, 0], begin_end[:, 1]))
        return made


def _steps(spec: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps before the model, those in sequences, too."""
    for step in (spec.get("normalizer"), spec.get("pre_tokenizer")):
        if step and step["type"] == "Sequence":
            yield from step.get("normalizers") or step.get("pretokenizers")
        elif step:
            yield step


def _sets_blank(step: dict[str, Any]) -> bool:
    prepends = step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
    return prepends or bool(step.get("add_prefix_space"))


def _without_blank(step: Any) -> Any:
    """Return a step that sets no blank before a text."""
    if not step:
        return step
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        kept = [_without_blank(inner) for inner in step[key]]
        return {**step, key: [inner for inner in kept if inner]}
    if step["type"] == "Prepend":
        return None
    changed = {"prepend_scheme": "never", "add_prefix_space": False}
    return {**step, **{key: value for key, value in changed.items() if key in step}}


def _joined(parts: list[Tokens], texts: list[str], between: int = len(SEAM)) -> Tokens:
    """Put the tokens of the parts of a text together; so many characters lie between them."""
    starts = np.cumsum([0, *(len(text) + between for text in texts)][:-1])
    shifted = [(ids, begin + at, end + at) for (ids, begin, end), at in zip(parts, starts, strict=True)]
    ids, begin, end = (np.concatenate(column) for column in zip(*shifted, strict=True))
    return ids, begin, end


@dataclass(frozen=True)
class _Fast:
    """tiktoken with the ranks of a tokenizer."""

    encoding: tiktoken.Encoding
    ids_V: np.ndarray
    """The tokenizer's id of each rank."""
    lengths_V: np.ndarray
    """Bytes of each rank."""
    doubtful_V: np.ndarray

    def encode(self, texts: Sequence[str]) -> list[Tokens | None]:
        """Return the tokens of each text; None where they are not proven."""
        ranks = [self._ranks(text) for text in texts]
        bounds = np.cumsum([0, *map(len, ranks)])
        ranks_N = np.concatenate(ranks) if ranks else np.zeros(0, np.int64)
        ids_N, doubtful_N = self.ids_V[ranks_N], self.doubtful_V[ranks_N]
        end_N = np.cumsum(self.lengths_V[ranks_N])  # in bytes, of all texts
        begin_N = end_N - self.lengths_V[ranks_N]
        made: list[Tokens | None] = []
        for text, first, last in zip(texts, bounds.tolist(), bounds[1:].tolist(), strict=False):
            if doubtful_N[first:last].any() or (text and first == last):
                made.append(None)
                continue
            begin, end = begin_N[first:last], end_N[first:last]
            if first < last:
                begin, end = begin - begin[0], end - begin[0]
                if end[-1] != len(text):  # some character has more than one byte
                    raw = np.frombuffer(text.encode(), np.uint8)
                    character = np.cumsum((raw & 0xC0) != 0x80)  # how many characters have begun with this byte
                    begin, end = character[begin] - 1, character[end - 1]
            made.append((ids_N[first:last], begin, end))
        return made

    def _ranks(self, text: str) -> np.ndarray:
        """Return the ranks of a text; none where its pattern gives up, as it does on a million blanks."""
        try:
            return self.encoding.encode_to_numpy(text, allowed_special="all")
        except ValueError:
            return np.zeros(0, np.uint32)


def _prepare(tokenizer: Any) -> _Fast | None:
    """Return tiktoken for a byte-level BPE without a normalizer; None for any other tokenizer."""
    backend = tokenizer.backend_tokenizer
    spec = json.loads(backend.to_str())
    model, pattern = spec["model"], _pattern(spec.get("pre_tokenizer"))
    odd = any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in spec["added_tokens"])
    if model["type"] != "BPE" or spec.get("normalizer") or pattern is None or odd or _overlap(spec["added_tokens"]):
        return None
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")):
        return None
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    ranked = dict.fromkeys([*byte_of, *(first + second for first, second in merges)])
    vocabulary = model["vocab"]
    if not all(token in vocabulary for token in ranked):
        return None
    if model.get("ignore_merges") and any(token not in ranked for token in vocabulary if token not in added):
        return None
    ranks = {token: rank for rank, token in enumerate(ranked)}
    raw = {bytes(byte_of[char] for char in token): rank for token, rank in ranks.items()}
    special = {content: len(ranks) + index for index, content in enumerate(added)}
    doubtful = _doubtful(ranks, merges, BPE(vocab=vocabulary, merges=merges))
    lengths = [len(token) for token in ranks] + [len(content.encode()) for content in added]
    return _Fast(
        tiktoken.Encoding("proven", pat_str=pattern, mergeable_ranks=raw, special_tokens=special),
        np.array([*(vocabulary[token] for token in ranks), *added.values()], np.int32),
        np.array(lengths, np.int32),
        np.concatenate([doubtful, np.zeros(len(added), bool)]),
    )


def _overlap(added: Sequence[dict[str, Any]]) -> bool:
    """Return whether it could matter which of two added tokens is looked for first: tiktoken has an order of its own.

    Of two that begin at one place, `tokenizers` takes the longer; and those that are not normalized before others.
    """
    contents = sorted(token["content"] for token in added)
    if any(after.startswith(before) for before, after in pairwise(contents)):
        return True
    first, then = ([t["content"] for t in added if t["normalized"] is normalized] for normalized in (False, True))
    return any(one in other or any(one.endswith(other[:n]) for n in range(1, len(other)))
               for pair in product(first, then) for one, other in permutations(pair))  # fmt: skip


def _doubtful(ranks: dict[str, int], merges: list[tuple[Any, ...]], bpe: BPE) -> np.ndarray:
    """Return, for each rank, whether tiktoken might reach the token by a step that the tokenizer would not take."""
    last, stuck = {}, set()
    for index, (first, second) in enumerate(merges):
        token = first + second
        if last.get(token, index - 1) != index - 1:  # one rank can't stand for pairs that are tried at different times
            stuck.add(token)
        last[token] = index
    stuck |= {token for token in ranks if len(bpe.tokenize(token)) != 1}
    holds = re.compile("|".join(map(re.escape, stuck)) or r"(?!)")
    return np.array([bool(holds.search(token)) for token in ranks])


def _pattern(pre_tokenizer: Any) -> str | None:
    """Return the pattern by which a byte-level pre-tokenizer splits words; None where it is of another kind."""
    if not pre_tokenizer:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *before, last = steps
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not before:
        return GPT2 if last.get("use_regex", True) else None
    split = before[0]
    if split == DIGITS and len(before) == 1 and last.get("use_regex", True):
        return GPT2_DIGITS
    if len(before) > 1 or split["type"] != "Split" or last.get("use_regex", True):
        return None
    if split["behavior"] != "Isolated" or split.get("invert") or "Regex" not in split["pattern"]:
        return None
    return str(split["pattern"]["Regex"])
