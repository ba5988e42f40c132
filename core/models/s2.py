"""Shifted sparse attention, S2 (LongLoRA, arXiv 2309.12307): long rows learn in groups, half of the heads shifted.

In training one half of the heads attends within groups of G tokens, the other within groups that begin G/2 tokens
later, so that what one half learns flows on through the other. The first and the last G/2 tokens are groups of their
own (variant 2 of the paper's ablation): joined to one, as the shift alone would leave them, the end of a row would be
seen from its beginning. In evaluation and answers attention is full, as in the paper.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from core.errors import InputError
from core.models import damage, varlen
from core.models.vocabulary import some_tokens

NAME = "s2"


def group_length(longest: int, share: float) -> int:
    """Return the tokens of a group, a share of the longest row; 0 where that is no even whole number of them."""
    group = round(longest * share)
    return group if abs(group - longest * share) < 1e-6 and group % 2 == 0 else 0


def cuts(rows: list[int], group: int, first: int) -> list[int]:
    """Return where groups begin and end: rows end to end, each cut after `first` tokens and then after each `group`."""
    begins = [at for begin, end in pairwise(rows) for at in (begin, *range(begin + first, end, group))]
    return [*begins, rows[-1]]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    group: int,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return (B, T, heads, D) for query (B, heads, T, D) and key, value (B, groups, T, D).

    Rows of a batch may end in padding, or lie end to end in one line with bounds cu_seq_lens_q (varlen.attention).
    """
    if not module.training:
        return varlen.attention(module, query, key, value, attention_mask, cu_seq_lens_q=cu_seq_lens_q, **kwargs)
    B, heads, T, _ = query.shape
    rows = list(range(0, B * T + 1, T)) if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    query, key, value = (_in_line(tensor) for tensor in (query, key, value))
    if heads % 2 or key.shape[1] % 2:  # the heads of a group would fall into both halves
        key, value = (tensor.repeat_interleave(heads // tensor.shape[1], dim=1) for tensor in (key, value))
    kwargs["max_length_q"] = group
    made = []
    for first, q, k, v in zip(
        (group, group // 2), *(tensor.tensor_split(2, dim=1) for tensor in (query, key, value)), strict=True
    ):
        bounds = torch.tensor(cuts(rows, group, first), dtype=torch.int32, device=query.device)
        made.append(varlen.attention(module, q, k, v, None, cu_seq_lens_q=bounds, **kwargs)[0])
    return torch.cat(made, dim=2).reshape(B, T, heads, -1), None


def _in_line(tensor: torch.Tensor) -> torch.Tensor:
    """Return (1, heads, B·T, D) for (B, heads, T, D): the rows of a batch end to end."""
    return tensor.transpose(0, 1).flatten(1, 2)[None]


def shift(model: PreTrainedModel, group: int) -> None:
    """Let the model learn with S2 in groups of so many tokens.

    Raises InputError for a model whose attention can't be put in place of: shown by trying, with full attention.
    """
    before: Any = model.config._attn_implementation
    was_training = model.training
    windows: list[int | None] = []

    def watched(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        windows.append(kwargs.get("sliding_window"))
        return attention(*args, group=group, **kwargs)

    row = some_tokens(model, 3, 14)
    model.eval()
    try:
        with torch.inference_mode():
            wanted = model(input_ids=row, use_cache=False).logits
            damage.check(model, wanted)
            AttentionInterface.register(NAME, watched)
            model.set_attn_implementation(NAME)
            found = model(input_ids=row, use_cache=False).logits
        limit = varlen.TOLERANCE[wanted.dtype] * float(wanted.abs().max())
        same = bool(windows) and bool((found - wanted).abs().max() <= limit) and varlen.windows_told(model, windows)
    except (TypeError, ValueError, RuntimeError):  # an architecture with arguments that this attention does not know
        same = False
    model.train(was_training)
    if not same:
        model.set_attn_implementation(before)
        raise InputError("s2.model", "training.s2", model=model.config.model_type)
    AttentionInterface.register(NAME, partial(attention, group=group))
