"""What fine-tuning by example can minimise beside plain cross-entropy, and the noise it can learn with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, kl_div

from core.training.chunks import bare
from core.training.objective import Batch, Metrics, NextToken, look
from core.training.preference import without_adapter


@dataclass(frozen=True)
class Imitation:
    """Cross-entropy over the learned tokens, changed. What is held out is measured by plain cross-entropy."""

    dynamic: bool = False
    """Each token counts by its probability, as it is now: DFT (Wu et al., arXiv 2508.05629)."""
    smoothing: float = 0.0
    """Part of the target that is spread over all tokens (Szegedy et al., arXiv 1512.00567, 7)."""
    z_weight: float = 0.0
    """Weight of the square of the logarithm of what the softmax divides by (PaLM, arXiv 2204.02311, 5)."""
    anchor: float = 0.0
    """Weight of KL(base || model) at each token; with `dynamic` this is ASFT (Zhu et al., arXiv 2509.23753)."""
    noise: float = 0.0
    """Alpha of NEFTune."""
    per_token = True
    paired = False
    asks = False

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        if not model.training:
            return NextToken()(model, batch, count)
        with noisy(model, batch, self.noise) if self.noise else nullcontext():
            seen = look(model, batch)
        logits_K_V, targets_K = seen.logits_K_V.float(), seen.targets_K
        plain_K = cross_entropy(logits_K_V, targets_K, reduction="none")
        loss_K, told = plain_K, {"loss/cross_entropy": plain_K.mean()}
        if self.smoothing:
            loss_K = cross_entropy(logits_K_V, targets_K, reduction="none", label_smoothing=self.smoothing)
        if self.dynamic:
            loss_K = loss_K * torch.exp(-plain_K).detach()
        if self.z_weight:
            loss_K = loss_K + self.z_weight * logits_K_V.logsumexp(-1) ** 2
        if self.anchor:
            with torch.no_grad(), without_adapter(model):
                base_K_V = look(model, batch).logits_K_V.float().log_softmax(-1)
            distance_K = kl_div(logits_K_V.log_softmax(-1), base_K_V, reduction="none", log_target=True).sum(-1)
            loss_K = loss_K + self.anchor * distance_K
            told["loss/anchor"] = distance_K.mean()
        told |= {} if seen.aux_loss is None else {"aux_loss": seen.aux_loss}
        return loss_K.sum() / (len(loss_K) if count is None else count), told


@contextmanager
def noisy(model: Any, batch: Batch, alpha: float) -> Iterator[None]:
    """Let a model see its embeddings with noise: NEFTune (Jain et al., arXiv 2310.05914, algorithm 1).

    Each number is off by up to alpha / sqrt(L D), L the tokens of its row and D their width. transformers' own takes
    for L the length of the batch, which for rows in one line is that of all of them.
    """
    inner = bare(model)
    base: Any = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    bounds = batch.get("cu_seq_lens_q")
    if bounds is None:
        tokens_B_T_1 = batch["attention_mask"].sum(1)[:, None, None]
    else:
        lengths_B = bounds.diff()
        tokens_B_T_1 = lengths_B.repeat_interleave(lengths_B)[None, :, None]

    def shake(module: Any, given: Any, out_B_T_D: torch.Tensor) -> torch.Tensor:
        most = (alpha / (tokens_B_T_1 * out_B_T_D.shape[-1]).sqrt()).to(out_B_T_D)
        return out_B_T_D + torch.empty_like(out_B_T_D).uniform_(-1, 1) * most

    hook = base.get_input_embeddings().register_forward_hook(shake)
    try:
        yield
    finally:
        hook.remove()
