"""An optimizer that moves one weight at a time, so that it can do so as soon as its gradient is there."""

from __future__ import annotations

from typing import Any

import torch


class Single(torch.optim.Optimizer):
    """Moves one weight at a time: all in a step, or each at once in the backward pass, its gradient thrown away.

    At once, no other gradient is known: what needs all of them, such as clipping and the scale of fp16, can't be had.
    """

    def __init__(self, groups: Any, defaults: dict[str, Any], *, at_once: bool = False) -> None:
        super().__init__(groups, defaults)
        self.at_once = at_once
        self.norms: list[torch.Tensor] = []
        """Of the gradients since the last step that are gone."""
        weights = [(weight, place) for place, group in enumerate(self.param_groups) for weight in group["params"]]
        self.numbers = {weight: number for number, (weight, _) in enumerate(weights)}
        self.places = {weight: place for weight, place in weights}
        if at_once:
            for weight in self.numbers:
                weight.register_post_accumulate_grad_hook(self._now)

    def move(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        """Move a weight that has a gradient."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.move(weight, group)

    def norm(self) -> torch.Tensor:
        """Return the norm of the gradients since it was last asked for."""
        found = torch.stack(self.norms).norm() if self.norms else torch.zeros(())
        self.norms = []
        return found

    @torch.no_grad()
    def _now(self, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        self.norms.append(torch.linalg.vector_norm(weight.grad, dtype=torch.float32))
        self.move(weight, self.param_groups[self.places[weight]])
        weight.grad = None


def adam(state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """Return the direction in which Adam goes, as torch.optim.AdamW does; `state` keeps the moments."""
    beta1, beta2 = group["betas"]
    if "exp_avg" not in state:
        state["step"] = 0
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    state["step"] += 1
    mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    spread = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
    return (mean / (1 - beta1 ** state["step"])).div_(spread)


def go(weight: torch.Tensor, direction: torch.Tensor, group: dict[str, Any]) -> None:
    """Move a weight against a direction, and towards zero where weight decay is wanted."""
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.add_(direction, alpha=-group["lr"])
