"""AdamW on one block of a model at a time, or on a share of each weight (arXiv 2404.02827).

Ours, for the package of the paper forgets in a checkpoint which block it was at, and needs as many files for DeepSpeed.
All that a part was moved by is forgotten when the next one takes its turn.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import PreTrainedModel

from core.errors import InputError
from core.models.blocks import blocks
from core.optimizers.badam import share
from core.optimizers.steps.single import Single, adam, go

Parts = list[list[torch.nn.Parameter]]


def parted(model: PreTrainedModel, *, ends: bool) -> Parts:
    """Return what learns in each block, and in what is no block where the ends learn, too.

    Raises InputError where nothing of it would learn.
    """
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    stack, inside = blocks(model)
    starts = [f"{stack}.{number}." for number in range(len(inside))]
    found = [[weight for name, weight in learning.items() if name.startswith(start)] for start in starts]
    if ends:
        found.append([weight for name, weight in learning.items() if not name.startswith(f"{stack}.")])
    found = [part for part in found if part]
    if not found:
        raise InputError("badam.nothing", "optimizer")
    return found


class ByBlock(torch.optim.Optimizer):
    """AdamW on one part, in fp32 whatever it is held in; the others neither learn nor have gradients."""

    def __init__(self, groups: Any, parts: Parts, *, every: int, order: str, seed: int, **adam: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "steps": 0, **adam})
        self.parts, self.every, self.order, self.seed = parts, every, order, seed
        self._turn()

    @property
    def active(self) -> int:
        """The number of the part whose turn it is: the steps done tell it, so that a resumed run knows it."""
        count = len(self.parts)
        turn = self.param_groups[0]["steps"] // self.every
        if self.order == "random":
            places = list(range(count))
            random.Random(f"{self.seed} {turn // count}").shuffle(places)
            return places[turn % count]
        if self.order == "fixed":
            return count - 1
        return turn % count if self.order == "ascending" else count - 1 - turn % count

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    move(weight, weight.grad.float(), self.state[weight], group)
            group["steps"] += 1
        if self.param_groups[0]["steps"] % self.every == 0:
            self._turn()

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self._turn()

    def _turn(self) -> None:
        """Let the active part learn, and it alone; forget what moved the others."""
        active = set(self.parts[self.active])
        for group in self.param_groups:
            for weight in group["params"]:
                weight.requires_grad_(weight in active)
                if weight not in active:
                    weight.grad = None
                    self.state.pop(weight, None)


class ByShare(Single):
    """AdamW on a share of the numbers of each weight; of a gradient, only that share is kept."""

    def __init__(
        self, groups: Any, parts: Parts, *, every: int, ratio: float, scatter: bool, seed: int, **adam: Any
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "steps": 0, **adam}, at_once=True)
        self.every, self.ratio, self.scatter, self.seed = every, ratio, scatter, seed
        self.chosen: dict[torch.Tensor, torch.Tensor | slice] = {}
        self.given: dict[torch.Tensor, torch.Tensor] = {}
        """What is kept of the gradients since the last step."""
        learning = {weight for part in parts for weight in part}
        for weight in self.numbers:
            weight.requires_grad_(weight in learning)

    def norm(self) -> torch.Tensor:
        return torch.stack([gradient.norm() for gradient in self.given.values()]).norm()

    @torch.no_grad()
    def _now(self, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        kept = weight.grad.flatten()[self._places(weight)].float()
        self.given[weight] = self.given[weight] + kept if weight in self.given else kept
        weight.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight in self.given:
                    self._move(weight, self.given.pop(weight), group)
            group["steps"] += 1
        if self.param_groups[0]["steps"] % self.every == 0:
            self.chosen.clear()
            self.state.clear()

    def _move(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        flat, places = weight.view(-1), self._places(weight)
        moved = flat[places]
        move(moved, gradient, self.state[weight], group)
        flat[places] = moved

    def _places(self, weight: torch.Tensor) -> torch.Tensor | slice:
        """Return which numbers of a weight learn now: those behind the last ones, as they lie or shuffled."""
        if weight not in self.chosen:
            size = weight.numel()
            count = share(size, self.ratio)
            turns = -(-size // count)
            round_, turn = divmod(self.param_groups[0]["steps"] // self.every, turns)
            first = min(turn * count, size - count)
            if self.scatter:
                drawn = random.Random(f"{self.seed} {self.numbers[weight]} {round_}").getrandbits(62)
                order = torch.randperm(size, generator=torch.Generator().manual_seed(drawn))
                self.chosen[weight] = order[first : first + count].to(weight.device).clone()
            else:
                self.chosen[weight] = slice(first, first + count)
        return self.chosen[weight]


def move(weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Move a weight as AdamW does, computed and remembered in fp32."""
    if weight.dtype is torch.float32:
        go(weight, adam(state, gradient, group), group)
        return
    if "exact" not in state:
        state["exact"] = weight.float()
    go(state["exact"], adam(state, gradient, group), group)
    weight.copy_(state["exact"])
