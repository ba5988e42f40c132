"""How likely a model finds the reference answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from core.models.answering import pad_left


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the indices in groups of about equal length, the longest first: if memory is short, it is so at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for first in range(0, len(order), size):
        yield order[first : first + size]


@torch.inference_mode()
def loss(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> float:
    """Return the summed negative log likelihood, in nats, of the answers in one batch of (prompt, answer) token rows.

    Rows end together (padding at the left), so that logits are computed only for the last positions; prompts must not
    be empty.
    """
    inputs = pad_left([prompt + answer for prompt, answer in rows], 0, model.device)
    # with padding at the left a learned position would be counted from the padding on
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    kept = 1 + max(len(answer) for _, answer in rows)
    logits_B_T_V = model(**inputs, position_ids=positions, logits_to_keep=kept, use_cache=False).logits
    total = 0.0
    for row, (_, answer) in enumerate(rows):
        logits_T_V = logits_B_T_V[row, -len(answer) - 1 : -1].float()  # the logits before a token foretell it
        targets = inputs["input_ids"][row, -len(answer) :]
        total += torch.nn.functional.cross_entropy(logits_T_V, targets, reduction="sum").item()
    return total
