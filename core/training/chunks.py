"""The head of a model in parts: the logits of many tokens and words would be most of what a step holds.

A part's logits are gone once the logarithms of its probabilities are known, and are computed anew on the way back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel as Parallel
from torch.utils.checkpoint import checkpoint

from core.data.encode import IGNORED
from core.models.tables import CHUNK

After = Callable[[torch.Tensor], torch.Tensor]
SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier")
CAP = "final_logit_softcapping"
"""Names in configs: by what logits are multiplied or divided after the head, and what bounds them."""

_after: weakref.WeakKeyDictionary[torch.nn.Module, After | None] = weakref.WeakKeyDictionary()


def wanted(model: Any, targets_B_P: torch.Tensor) -> After | None:
    """Return what becomes of what the head gives, if the logits of these targets are to be made in parts.

    None: they are few, or nobody knows what becomes of them. So it is where processes divide the weights, for one alone
    could not look.
    """
    inner, (base, words) = bare(model), _base(model)
    head = base.get_output_embeddings()
    whole = (model is inner or isinstance(model, Parallel)) and not isinstance(inner, FSDPModule)
    if head is None or not whole or targets_B_P.numel() * words <= CHUNK:
        return None
    if head not in _after:
        _after[head] = _found(inner, head, base.config.get_text_config(), targets_B_P)
    return _after[head]


@contextmanager
def said(model: Any, targets_B_P: torch.Tensor, after: After) -> Iterator[list[torch.Tensor]]:
    """Give a list that holds, after a forward within the block, the logarithms of the probabilities of the targets.

    They are (B, P, 1), in fp32. The head makes them, where the model computes in the precision of the run; what follows
    it in the model means nothing then.
    """
    base, words = _base(model)
    head = base.get_output_embeddings()
    own, forward = vars(head).get("forward"), head.forward
    length = max(1, CHUNK // words)
    found: list[torch.Tensor] = []

    def logps(hidden_L_D: torch.Tensor, targets_L: torch.Tensor) -> torch.Tensor:
        return -cross_entropy(after(forward(hidden_L_D)).float(), targets_L, ignore_index=IGNORED, reduction="none")

    def parts(hidden_B_P_D: torch.Tensor) -> torch.Tensor:
        made = [
            checkpoint(logps, hidden_L_D, targets_L, use_reentrant=False)
            for hidden_L_D, targets_L in zip(
                hidden_B_P_D.flatten(0, 1).split(length), targets_B_P.flatten().split(length), strict=True
            )
        ]
        found.append(torch.cat(made).view(*targets_B_P.shape, 1))
        return found[0]

    head.forward = parts
    try:
        yield found
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def bare(model: Any) -> Any:
    """Return a model without what is around it where several processes train it."""
    return extract_model_from_parallel(model)


def _base(model: Any) -> tuple[Any, int]:
    """Return a model without its adapters, and how many words it knows."""
    inner = bare(model)
    base: Any = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    return base, vars(base.config.get_text_config()).get("vocab_size", 0)


def _found(model: Any, head: torch.nn.Module, config: Any, targets_B_P: torch.Tensor) -> After | None:
    """Return what becomes of what the head of a model gives until it is logits; one learned token is looked at."""
    given: list[Any] = []
    hook = head.register_forward_hook(lambda _, __, out: given.append(out))
    token_1_1 = targets_B_P[targets_B_P != IGNORED][:1][None]
    try:
        with torch.no_grad(), torch.random.fork_rng():  # what is drawn by chance here is not missed later
            logits = model(input_ids=token_1_1, use_cache=False).logits
    finally:
        hook.remove()
    if len(given) != 1:
        return None
    return next((after for after in _known(config) if torch.equal(after(given[0]).float(), logits.float())), None)


def _known(config: Any) -> Iterator[After]:
    """Yield what may become of logits by the config of a model."""
    yield lambda logits: logits
    for scale in filter(None, (vars(config).get(name) for name in SCALES)):
        yield lambda logits, by=scale: logits * by
        yield lambda logits, by=scale: logits / by
    if cap := vars(config).get(CAP):
        yield lambda logits: torch.tanh(logits / cap) * cap
