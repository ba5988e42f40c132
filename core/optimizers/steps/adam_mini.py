"""Adam with one second moment for each part of a weight (arXiv 2406.16793).

Ours, for the package of the paper takes every head for as wide as the model by the number of heads, and prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from core.optimizers.steps.single import Single, go


class AdamMini(Single):
    """AdamW, but the square of the gradient is a mean over each part of a weight: a row of it seen as (parts, rest)."""

    def __init__(self, groups: Any, parts: Mapping[torch.nn.Parameter, int], **adam: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, **adam})
        self.parts = parts

    def move(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        assert isinstance(weight, torch.nn.Parameter) and weight.grad is not None
        gradient = weight.grad
        square = gradient.reshape(self.parts[weight], -1).square().mean(1, keepdim=True)
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(square))
        state["step"] += 1
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
        spread = state["exp_avg_sq"].lerp_(square, 1 - beta2) / (1 - beta2 ** state["step"])
        direction = mean.reshape(self.parts[weight], -1) / spread.sqrt_().add_(group["eps"])
        go(weight, direction.reshape(weight.shape), group)
