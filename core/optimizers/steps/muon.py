"""Muon for some weights and AdamW for the others, both those of torch, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon moves the groups that have a momentum, as far as AdamW would: a learning rate means the same for both."""

    def __init__(self, groups: Any, *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        own, others = self._parted()
        self.muon = torch.optim.Muon(own, adjust_lr_fn="match_rms_adamw") if own else None
        self.adamw = torch.optim.AdamW(others, betas=betas, eps=eps) if others else None  # each fills its groups in

    def _parted(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        own = [group for group in self.param_groups if "momentum" in group]
        return own, [group for group in self.param_groups if "momentum" not in group]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part, groups in zip((self.muon, self.adamw), self._parted(), strict=True):
            if part is not None:
                part.param_groups, part.state = groups, self.state  # which are others after a checkpoint was read
                part.step()
