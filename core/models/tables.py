"""The tables of a model, embedding and head, by shapes alone: how new tokens grow them, what adapters do to them. Cold.

A table is often the largest matrix of a model, and what learns of it takes more than all adapters of the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.models.jsons import read_json
from core.models.shapes import Linear, Shapes
from core.models.targets import apart, means

MULTIPLE = 64
"""Matrix kernels like numbers of rows that this divides."""
HEAD = "lm_head"
"""What the head is called where it has no weight of its own in the files: where it is tied."""

ROWS = "token_adapter"
"""What the rows of new tokens are called behind the name of their table, where an adapter holds them."""

CHUNK = 1 << 26
"""Logits made at once: more are made in parts (core.training.chunks)."""


@dataclass(frozen=True)
class Passing:
    """Numbers that are there for a part of a step alone, because of tables that learn."""

    kept: int = 0
    """A copy of the head with the new rows in it, from its answer to its gradient."""
    head: int = 0
    """The gradient of the head, or of that copy: it comes while all that autograd keeps is still there."""
    after: int = 0
    """Gradients beyond those of what learns, at the end of the way back."""


def tables(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return name -> shape (V, D) of the weights of the embedding and of the head; of tied ones the embedding alone."""
    return {name: shapes.tensors[name] for name in (shapes.table, shapes.head) if name in shapes.tensors}


def padded(tokens: int) -> int:
    """Return how many rows a table gets that is to have so many tokens."""
    return -(-tokens // MULTIPLE) * MULTIPLE


def widened(shapes: Shapes, tokens: int) -> Shapes:
    """Return the shapes of a model whose tables have rows for so many tokens."""
    if tokens <= shapes.embedding[0]:
        return shapes
    wide = {name: (padded(tokens), shape[1]) for name, shape in tables(shapes).items()}
    return Shapes({**shapes.tensors, **wide, **_biases(shapes, padded(tokens))}, shapes.config)


def known_tokens(folder: Path) -> int | None:
    """Return how many tokens the tokenizer of a folder knows; None where its tokenizer.json can't tell."""
    if not (folder / "tokenizer.json").is_file():
        return None
    settings = read_json(folder / "tokenizer.json", "model.path", "model.no_tokenizer")
    model = settings.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(words, dict | list):
        return None
    # of a dictionary the words, of a list (unigram) pairs of word and score
    names = set(words) if isinstance(words, dict) else {str(pair[0]) for pair in words if isinstance(pair, list)}
    more = settings.get("added_tokens")
    beside = [token for token in more if isinstance(token, dict)] if isinstance(more, list) else []
    return len(names | {str(token.get("content")) for token in beside})


def ends(shapes: Shapes, targets: Sequence[str], *, table: bool) -> list[Linear]:
    """Return head and, if adapters can stand there (`table`), embedding as layers, where targets name them."""
    rows, width = shapes.embedding
    embedding = [Linear(shapes.table.removesuffix(".weight"), width, rows)] if table else []
    found = [*embedding, head(shapes)] if rows else []
    trunk = shapes.stack.rpartition(".")[0]
    parts = {end.name: apart(end.name, trunk) | {end.name.rpartition(".")[2]} for end in found}
    return [end for end in found if any(means(target, end.name, parts[end.name]) for target in targets)]


def head(shapes: Shapes) -> Linear:
    """Return the head as a layer, whether its weight is its own or that of the embeddings."""
    rows, width = shapes.tensors.get(shapes.head, shapes.embedding)
    return Linear((shapes.head or HEAD).removesuffix(".weight"), rows, width)


def with_bias(shapes: Shapes) -> list[str]:
    """Return the modules of those tables of which single rows can't learn: heads with a bias."""
    modules = [name.removesuffix(".weight") for name in tables(shapes)]
    return [module for module in modules if f"{module}.bias" in shapes.tensors]


def passing(shapes: Shapes, learns: Container[str], *, own: bool, masked: bool) -> Passing:
    """Return what comes and goes because of tables.

    own: whether the model's own weights learn; adapters teach copies, which are tied to nothing. masked: whether a mask
    leaves the gradients of tables to the new rows.
    """
    one = math.prod(shapes.embedding)
    table = shapes.table
    if f"{(shapes.head or table).removesuffix('.weight')}.{ROWS}" in learns:
        return Passing(kept=one, head=one, after=one)
    if f"{table.removesuffix('.weight')}.{ROWS}" in learns:
        return Passing(head=one if shapes.head in learns else 0, after=one)
    if own and not shapes.head and table in learns:  # its gradient as a head, that as embeddings, the sum
        return Passing(head=one, after=2 * one)
    learning = one if shapes.head in learns else 0
    return Passing(head=learning, after=one if masked and (learning or table in learns) else 0)


def _biases(shapes: Shapes, rows: int) -> dict[str, tuple[int, ...]]:
    return {f"{module}.bias": (rows,) for module in with_bias(shapes)}
