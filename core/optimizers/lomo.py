"""LOMO: plain steps against the gradient, each as soon as it is there (Lv et al., arXiv 2306.09782)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from core.models.shapes import Shapes
from core.optimizers import BY_LAYER, OWN, Groups, Learning, Optimizer, Want, largest
from core.schema import knob

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments


class Lomo(Optimizer):
    """LOMO
    Full tuning with no memory beside the weights: nothing is remembered, and gradients are thrown away at once. For
    models that fit in no other way. Without gradient clipping, accumulation and fp16."""

    kind: Literal["lomo"] = "lomo"
    bears: ClassVar[float] = 200.0
    learning_rate: float = knob(1e-2, gt=0, le=10)
    """Learning rate
    Size of a step, here times the gradient as it is: it wants to be much larger than with AdamW. Typical: 1e-3 to
    5e-2."""

    @property
    def wants(self) -> frozenset[Want]:
        return OWN | BY_LAYER

    def build(self, model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> torch.optim.Optimizer:
        from core.optimizers.steps.lomo import Lomo as Steps

        return Steps(groups)

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        return 0

    def gradient_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        return width * largest(learns)
