"""AdamW whose moments of matrices live in few dimensions: GaLore (arXiv 2403.03507) and APOLLO (arXiv 2412.05270).

Ours, for what the packages of the papers keep can't be read back: the directions are objects that a checkpoint refuses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from core.models.blocks import blocks
from core.optimizers import Groups
from core.optimizers.galore import sides
from core.optimizers.steps.single import Single, adam, go

GROWTH, TINY = 1.01, 1e-8
"""How much longer than the last one a step of APOLLO may be; guard against division by zero."""


def divided(model: PreTrainedModel, groups: Groups, kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups with the matrices of the blocks apart, which get what is `kept` of the settings, too."""
    chosen = in_blocks(model)
    return list(_divided(groups, chosen, kept))


def in_blocks(model: PreTrainedModel) -> set[torch.nn.Parameter]:
    """Return the matrices that lie in the blocks of the text part."""
    inside = f"{blocks(model)[0]}."
    return {weight for name, weight in model.named_parameters() if name.startswith(inside) and weight.ndim == 2}


def _divided(groups: Groups, chosen: set[torch.nn.Parameter], kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in groups:
        for more in ({}, kept):
            weights = [weight for weight in group["params"] if (weight in chosen) is bool(more)]
            if weights:
                yield {**group, **more, "params": weights}


class GaLoreAdamW(Single):
    """AdamW in the directions in which the gradient was largest when they were last looked for."""

    def __init__(self, groups: Any, *, layerwise: bool, **adam: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "rank": 0, **adam}, at_once=layerwise)

    def move(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not group["rank"]:
            go(weight, adam(state, gradient, group), group)
            return
        if state.get("step", 0) % group["every"] == 0:
            _look(state, gradient, group["rank"], sides(group["projection"], *weight.shape))
        go(weight, back(state, adam(state, small(state, gradient), group)) * group["scale"], group)


class ApolloAdamW(Single):
    """The raw gradient, scaled as AdamW scales a small image of it: by channels or as a whole."""

    def __init__(self, groups: Any, *, seed: int, layerwise: bool, **adam: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "rank": 0, **adam}, at_once=layerwise)
        self.seed = seed

    def move(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not group["rank"]:
            go(weight, adam(state, gradient, group), group)
            return
        image = self._image(weight, gradient, state, group)
        direction = adam(state, image, group)
        across = (0 if weight.shape[0] < weight.shape[1] else 1) if group["scaling"] == "channel" else None
        factor = _length(direction, across) / (_length(image, across) + TINY)
        scaled = gradient * factor
        norm = scaled.norm()
        if "norm" in state:  # no step is much longer than the one before (Fira, arXiv 2410.01623)
            limit = (norm / (state["norm"] + TINY)).clamp(min=GROWTH) / GROWTH
            scaled, norm = scaled / limit, norm / limit
        state["norm"] = norm
        go(weight, scaled * group["scale"] ** 0.5, group)

    def _image(
        self, weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> torch.Tensor:
        """Return the gradient in few dimensions: by its singular vectors, or by chance."""
        rows, columns = weight.shape
        turn, before = divmod(state.get("step", 0), group["every"])
        if group["projection"] == "svd":
            if not before:
                _look(state, gradient, group["rank"], sides("std", rows, columns))
            return small(state, gradient)
        # drawn anew in each step from the same seed, so that nothing must be kept
        drawn = random.Random(f"{self.seed} {self.numbers[weight]} {turn}").getrandbits(62)
        chance = torch.Generator(gradient.device).manual_seed(drawn)
        shape = (min(group["rank"], rows, columns), min(rows, columns))
        made = torch.randn(shape, generator=chance, device=gradient.device, dtype=gradient.dtype) / shape[0] ** 0.5
        return gradient @ made.T if rows >= columns else made @ gradient


def _look(state: dict[str, Any], gradient: torch.Tensor, rank: int, wanted: tuple[bool, bool]) -> None:
    """Find the directions anew: `left` (rows, rank), `right` (rank, columns)."""
    # of what is no number no directions can be found; the loss is watched elsewhere
    left, _, right = torch.linalg.svd(gradient.float().nan_to_num(), full_matrices=False)
    if wanted[0]:
        state["left"] = left[:, :rank].to(gradient.dtype).contiguous()
    if wanted[1]:
        state["right"] = right[:rank].to(gradient.dtype).contiguous()


def small(state: dict[str, Any], gradient: torch.Tensor) -> torch.Tensor:
    """Return a matrix in the directions that are kept."""
    given = state["left"].T @ gradient if "left" in state else gradient
    return given @ state["right"].T if "right" in state else given


def back(state: dict[str, Any], direction: torch.Tensor) -> torch.Tensor:
    """Return what is meant by a direction of few dimensions."""
    given = state["left"] @ direction if "left" in state else direction
    return given @ state["right"] if "right" in state else given


def _length(matrix: torch.Tensor, across: int | None) -> torch.Tensor:
    return matrix.norm() if across is None else matrix.norm(dim=across, keepdim=True)
