"""GaLore: the moments of a matrix in the few directions in which its gradient is largest (arXiv 2403.03507)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from core.models.shapes import Shapes
from core.optimizers import BY_LAYER, OWN, Groups, Learning, Moments, Optimizer, Want, largest, matrices, numbers
from core.schema import knob

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

Projection = Literal["std", "reverse_std", "left", "right", "full"]


class GaLore(Moments, Optimizer):
    """GaLore
    Full tuning with the optimizer's memory in a few directions of each matrix: about a quarter of AdamW's. Slower when
    the directions are found anew."""

    kind: Literal["galore"] = "galore"
    rank: int = knob(128, ge=1, le=8192)
    """Rank
    Directions kept of each matrix. More learn better and take more memory. Typical: 128 to 1024."""
    update_every: int = knob(200, ge=1, le=100_000)
    """New directions every
    Steps after which the directions are found anew. Typical: 50 to 500."""
    scale: float = knob(0.25, gt=0, le=1000)
    """Scale
    What the steps of these matrices are multiplied with. Typical: 0.25, with a learning rate some times larger."""
    projection: Projection = knob("std", expert=True)
    """Projection
    Which side of a matrix is made small. std takes the shorter one, which costs the least; full both."""
    layerwise: bool = knob(False, expert=True)
    """Layer by layer
    Move each weight as soon as its gradient is there and throw that away: much less memory. Without gradient clipping,
    accumulation and fp16."""

    @property
    def wants(self) -> frozenset[Want]:
        return OWN | BY_LAYER if self.layerwise else OWN

    def build(self, model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> torch.optim.Optimizer:
        from core.optimizers.steps.low_rank import GaLoreAdamW, divided

        kept = {"rank": self.rank, "every": self.update_every, "scale": self.scale, "projection": self.projection}
        return GaLoreAdamW(divided(model, groups, kept), layerwise=self.layerwise, **self.adam)

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        small = matrices(learns, shapes)
        whole = numbers(learns) - numbers(small)
        return width * (2 * whole + sum(map(self._of_one, small.values())))

    def gradient_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        return width * (largest(learns) if self.layerwise else numbers(learns))

    def _of_one(self, shape: tuple[int, ...]) -> int:
        """Return the numbers kept for a matrix: two moments, and the directions."""
        rows, columns = shape
        rank = min(self.rank, rows, columns)
        left, right = sides(self.projection, rows, columns)
        moments = 2 * (rank if left else rows) * (rank if right else columns)
        return moments + (rank * rows if left else 0) + (rank * columns if right else 0)


def sides(projection: str, rows: int, columns: int) -> tuple[bool, bool]:
    """Return whether a matrix is made small from the left, so that it has few rows, and from the right."""
    tall = rows >= columns
    ways: dict[str, Any] = {"std": (not tall, tall), "reverse_std": (tall, not tall), "left": (True, False),
                            "right": (False, True), "full": (True, True)}  # fmt: skip
    return ways[projection]
