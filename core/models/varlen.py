"""Attention over rows that lie end to end in one line: each sees itself alone, and nothing is computed between them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from core.models import damage
from core.models.vocabulary import some_tokens

NAME, TRIAL = "varlen", "varlen_trial"
KEPT_APART = ("sdpa", NAME, "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention that can keep rows in one line apart: ours instead of sdpa, by bounds (flash) or by positions (flex)."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a logit may be from that of the row alone, as a share of the largest."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return (1, N, heads, D) for query (1, heads, N, D) and key, value (1, groups, N, D); rows end at cu_seq_lens_q.

    Without bounds each row of a batch is one. Registered as the attention implementation `varlen`.
    """
    if query.shape[2] != key.shape[2]:
        raise ValueError("varlen attention computes whole rows: turn the cache off")
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise ValueError("varlen attention knows no caps, sinks or biases")
    if cu_seq_lens_q is None:
        return _one(query, key, value, scaling, dropout, sliding_window).transpose(1, 2).contiguous(), None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _on_gpu(query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q), None
    bounds = cu_seq_lens_q.tolist()
    made = [
        _one(query[:, :, begin:end], key[:, :, begin:end], value[:, :, begin:end], scaling, dropout, sliding_window)
        for begin, end in pairwise(bounds)
    ]
    return torch.cat(made, dim=2).transpose(1, 2).contiguous(), None


def _one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float,
    window: int | None,
) -> torch.Tensor:  # fmt: skip
    """Return the causal attention of rows of one length, (B, heads, T, D)."""
    mask = None
    length = query.shape[2]
    if window is not None and window < length:
        distance_T_T = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
        mask = (distance_T_T >= 0) & (distance_T_T < window)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def _on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None,
    bounds: torch.Tensor, longest: int,
) -> torch.Tensor:  # fmt: skip
    """Return the attention of all rows by one kernel."""
    from torch.nn.attention.varlen import varlen_attn

    flat_q, flat_k, flat_v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    made: Any = varlen_attn(
        flat_q, flat_k, flat_v, bounds, bounds, longest, longest, scale=scaling,
        window_size=(-1 if window is None else window - 1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return made[None]


AttentionInterface.register(NAME, attention)


def isolate(model: PreTrainedModel) -> bool:
    """Let the model compute rows end to end, if it can be shown to keep them apart; return whether it does.

    Shown by trying: two short rows in one line must get the logits that each gets alone by the attention that the model
    had before. Models with a state between tokens, or with attention of their own, fail it and stay as they were.
    """
    before = model.config._attn_implementation
    was_training = model.training
    model.eval()
    try:
        apart = before in KEPT_APART and _apart(model, before)
    except (TypeError, ValueError, RuntimeError):  # an architecture that knows none of these arguments
        apart = False
    model.train(was_training)
    if before == "sdpa":
        model.set_attn_implementation(NAME if apart else before)
    return apart


def windows_told(model: PreTrainedModel, windows: list[int | None]) -> bool:
    """Return whether every layer that looks back only so far said so: rows as short as those tried don't show it."""
    config = model.config.get_text_config().to_dict()
    window, types = config.get("sliding_window"), config.get("layer_types") or []
    if config.get("attention_chunk_size") or "chunked_attention" in types:
        return False
    sliding = types.count("sliding_attention") if types else len(windows) * (window is not None)
    return sum(told is not None for told in windows) == sliding


@torch.inference_mode()
def _apart(model: PreTrainedModel, before: str) -> bool:
    """Return whether two rows in one line get the logits of each row alone."""
    windows: list[int | None] = []

    def watched(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        windows.append(kwargs.get("sliding_window"))
        return attention(*args, **kwargs)

    rows = [some_tokens(model, 3, 8), some_tokens(model, 4, 11)]
    lengths = [row.shape[1] for row in rows]
    bounds = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32, device=model.device)
    positions = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
    alone = torch.cat([model(row, use_cache=False).logits[0] for row in rows])
    damage.check(model, alone)
    if before == "sdpa":
        AttentionInterface.register(TRIAL, watched)
        model.set_attn_implementation(TRIAL)
    together = model(
        torch.cat(rows, 1), position_ids=positions, use_cache=False, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds,
        max_length_q=max(lengths), max_length_k=max(lengths),
    ).logits[0]  # fmt: skip
    if before == "sdpa" and not windows_told(model, windows):
        return False
    limit = TOLERANCE[together.dtype] * float(alone.abs().max())
    return bool((together - alone).abs().max() <= limit)
