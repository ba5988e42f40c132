"""What a reward model minimises: the better answer of a pair shall have the higher number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from core.data.encode import IGNORED
from core.models import value_head
from core.training.objective import Batch, Metrics
from core.training.preference import rewards


@dataclass(frozen=True)
class Reward:
    """Bradley-Terry over the numbers of n better answers and n worse ones.

    centering: weight of the square of their sum (Eisenstein et al., arXiv 2312.09244, eq. 5).
    """

    centering: float = 0.0
    per_token = False
    paired = True
    asks = False

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        head = value_head.attached(model)
        assert head is not None
        values_B, aux_loss = read(model, head, batch)
        chosen_B, rejected_B = values_B.chunk(2)
        loss = -logsigmoid(chosen_B - rejected_B).mean()
        if self.centering:
            loss = loss + self.centering * ((chosen_B + rejected_B) ** 2).mean()
        return loss, rewards(chosen_B, rejected_B) | ({} if aux_loss is None else {"aux_loss": aux_loss})


def read(model: Any, head: value_head.ValueHead, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (the number of each row of a batch, the loss of routers).

    The number is that at the last token that is learned, the end of its answer.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with value_head.reading(model, head, alone=True):
        out = model(**inputs, use_cache=False)
    values_B_T, aux_loss = out["value"], out["aux_loss"]
    learned_B_T = batch["labels"] != IGNORED
    bounds = batch.get("cu_seq_lens_q")
    if bounds is None:
        at_T = torch.arange(learned_B_T.shape[1], device=learned_B_T.device)
        ends_B = (at_T * learned_B_T).argmax(1)
        return values_B_T.gather(1, ends_B[:, None]).squeeze(1), aux_loss
    learned_K = learned_B_T[0].nonzero().squeeze(1)
    # how many learned tokens stand before each bound; the one before is the last of its row
    return values_B_T[0, learned_K[torch.searchsorted(learned_K, bounds[1:].to(learned_K)) - 1]], aux_loss
