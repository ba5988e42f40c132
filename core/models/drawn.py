"""What is held while a model draws the answers that it learns from, from shapes and settings alone. Cold.

All answers of a step are drawn at once, with a cache of the keys and values of every token so far; nothing is kept of
learning meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.models.shapes import NUMBERS, Linear, Shapes

if TYPE_CHECKING:
    from core.config import Run

WORD_BYTES = 24
"""For each answer and word of the table: its logit as it comes, at the temperature, its probability, and its luck."""
INNER, STREAM = 4, 3
"""Numbers for each that goes through an MLP at once, and through the model: what the questions take for a moment."""
LARGE = 32 << 20
"""Bytes of a block that glibc gives back at once when it is free; of smaller ones it may hold as many again."""


def lengthened(run: Run, shapes: Shapes) -> Run:
    """Return a run whose cutoff is the longest row that it can learn from: a question with the answer that is drawn.

    Questions come from rows that are cut; an answer ends where the context of the model does.
    """
    _, tokens = run.stage.drawn(run.training.batch_size)
    if not tokens:
        return run
    cutoff, context = run.data.cutoff, shapes.config.get("max_position_embeddings")
    room = context if context and isinstance(context, int) else cutoff + tokens
    if run.model.rope != "none":
        room = max(room, run.model.context or cutoff)
    length = max(min(cutoff - 1 + tokens, room), 2)
    return run.model_copy(update={"data": run.data.model_copy(update={"cutoff": length})})


def drawing(run: Run, shapes: Shapes, stream: int, inner: int) -> tuple[int, int]:
    """Return (bytes that are held at once while answers are drawn, bytes that glibc may hold beside them).

    stream, inner: bytes of a number that goes through the model, and of one that goes through a layer.
    """
    answers, _ = run.stage.drawn(run.training.batch_size)
    length = lengthened(run, shapes).data.cutoff
    asked = min(run.data.cutoff, length) - 1
    kept, more = cached(shapes)
    width = shapes.embedding[1] * stream
    moment = STREAM * width + INNER * inner * max(map(_widest, shapes.linears), default=0)
    if run.model.attention == "eager":
        moment += _size(shapes, "heads") * asked * (4 + 2 * inner)
    last = (length - 1) * (kept + more) * stream + WORD_BYTES * shapes.embedding[0]
    held = max(asked * (kept * stream + moment), last)
    of_questions = asked * moment * (answers * asked * width < LARGE)
    of_cache = length * kept * stream * (answers * length * more * stream < LARGE)  # each token makes larger blocks
    return int(answers * held), int(answers * max(of_questions, of_cache))


def cached(shapes: Shapes) -> tuple[int, int]:
    """Return (how many numbers are kept of a token that was read, how many more while one block reads them).

    Kept are its keys and values in all blocks; they grow by a copy of a block's keys, then of its values. Attention
    through latent vectors keeps those, and makes keys and values of them anew for each token that is drawn.
    """
    heads = _size(shapes, "heads")
    if latent := _size(shapes, "latent"):
        turned = _size(shapes, "turned")
        anew = heads * (_size(shapes, "unturned") + turned + _size(shapes, "value"))
        return len(shapes.blocks) * (latent + turned), anew
    keys = (_size(shapes, "groups") or heads) * (_size(shapes, "head") or shapes.embedding[1] // max(heads, 1))
    return len(shapes.blocks) * 2 * keys, keys


def _widest(linears: list[Linear]) -> float:
    """Return how many numbers of a token the widest layer of a block takes in its MLP."""
    return max((linear.columns * linear.active for linear in linears if linear.last), default=0)


def _size(shapes: Shapes, name: str) -> int:
    """Return a size by its name in NUMBERS; 0 where the config does not tell it."""
    told = (shapes.config.get(key) for key in NUMBERS[name])
    return next((value for value in told if value and isinstance(value, int)), 0)
