"""How likely a model finds the reference answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from core.models.answering import Beside, pad_left
from core.models.senses import on


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the indices in groups of about equal length, the longest first: if memory is short, it is so at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for first in range(0, len(order), size):
        yield order[first : first + size]


@torch.inference_mode()
def loss(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], beside: Beside | None = None) -> float:
    """Return the summed negative log likelihood, in nats, of the answers in one batch of (prompt, answer) token rows.

    Rows end together (padding at the left), so that logits are computed only for the last positions; prompts must not
    be empty.
    """
    inputs = pad_left([prompt + answer for prompt, answer in rows], 0, model.device)
    width = inputs["input_ids"].shape[1]
    given = beside([width - len(prompt + answer) for prompt, answer in rows], width) if beside else {}
    if not given:
        # with padding at the left a learned position would be counted from the padding on; models that see count
        # positions of their own, along the sides of an image
        given = {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    kept = 1 + max(len(answer) for _, answer in rows)
    logits_B_T_V = model(**inputs, **on(model, given), logits_to_keep=kept, use_cache=False).logits
    total = 0.0
    for row, (_, answer) in enumerate(rows):
        logits_T_V = logits_B_T_V[row, -len(answer) - 1 : -1].float()  # the logits before a token foretell it
        targets = inputs["input_ids"][row, -len(answer) :]
        total += torch.nn.functional.cross_entropy(logits_T_V, targets, reduction="sum").item()
    return total
