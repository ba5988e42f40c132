"""Steps against the gradient in the backward pass (arXiv 2306.09782).

Ours, for lomo-optim goes through all weights at each gradient and needs a launcher of several processes for fp16.
"""

from __future__ import annotations

from typing import Any

import torch

from core.optimizers.steps.single import Single, go


class Lomo(Single):
    """Stochastic gradient descent that keeps neither state nor gradients."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0}, at_once=True)

    def move(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        go(weight, weight.grad, group)
