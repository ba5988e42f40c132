"""APOLLO: the raw gradient, scaled as AdamW scales a small image of it (arXiv 2412.05270)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from core.models.shapes import Shapes
from core.optimizers import BY_LAYER, OWN, Groups, Learning, Moments, Optimizer, Want, largest, matrices, numbers
from core.schema import knob

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments


class Apollo(Moments, Optimizer):
    """APOLLO
    Full tuning with nearly the memory of plain SGD and the steps of AdamW, as quick as it. APOLLO-Mini: rank 1,
    scaling by tensor, scale 128."""

    kind: Literal["apollo"] = "apollo"
    rank: int = knob(256, ge=1, le=8192)
    """Rank
    Size of the image of each gradient. Typical: 16 to 256; 1 is enough with scaling by tensor."""
    update_every: int = knob(200, ge=1, le=100_000)
    """New image every
    Steps after which another image is drawn. Typical: 50 to 500."""
    scale: float = knob(1.0, gt=0, le=10_000)
    """Scale
    Its square root multiplies the steps of the matrices. Typical: 1 for large ranks, 32 for rank 16, 128 for rank 1."""
    scaling: Literal["channel", "tensor"] = knob("channel")
    """Scaling
    What gets a factor of its own: each channel of a matrix, or the matrix. tensor is for rank 1."""
    projection: Literal["random", "svd"] = knob("random", expert=True)
    """Image
    How it is made: by chance, which costs nothing, or from the largest parts of the gradient."""
    layerwise: bool = knob(False, expert=True)
    """Layer by layer
    Move each weight as soon as its gradient is there and throw that away: much less memory. Without gradient clipping,
    accumulation and fp16."""

    @property
    def wants(self) -> frozenset[Want]:
        return OWN | BY_LAYER if self.layerwise else OWN

    def build(self, model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> torch.optim.Optimizer:
        from core.optimizers.steps.low_rank import ApolloAdamW, divided

        kept = {"rank": self.rank, "every": self.update_every, "scale": self.scale, "scaling": self.scaling,
                "projection": self.projection}  # fmt: skip
        return ApolloAdamW(divided(model, groups, kept), seed=given.seed, layerwise=self.layerwise, **self.adam)

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        small = matrices(learns, shapes)
        held = 2 * (numbers(learns) - numbers(small))
        for shape in small.values():
            rank = min(self.rank, *shape)
            held += 2 * rank * max(shape) + (rank * min(shape) if self.projection == "svd" else 0)
        return width * held

    def gradient_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        return width * (largest(learns) if self.layerwise else numbers(learns))
