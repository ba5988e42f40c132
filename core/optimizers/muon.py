"""Muon: steps of matrices whose singular values are all alike (Jordan, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from core.models.shapes import Shapes
from core.optimizers import Groups, Learning, Moments, Optimizer, Want, matrices, numbers
from core.schema import knob

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments


class Muon(Moments, Optimizer):
    """Muon
    Turns the step of each matrix of the blocks so that it moves all directions alike; AdamW moves the rest. Half the
    memory of AdamW and often fewer steps; for full tuning of models that were trained with it, and from scratch."""

    kind: Literal["muon"] = "muon"
    momentum: float = knob(0.95, ge=0, lt=1, expert=True)
    """Momentum
    Memory of the gradient of matrices. Typical: 0.9 to 0.95."""
    iterations: int = knob(5, ge=1, le=20, expert=True)
    """Iterations
    Of Newton and Schulz, which make the singular values alike. Typical: 5."""

    @property
    def wants(self) -> frozenset[Want]:
        return frozenset({"matrices"})

    def build(self, model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> torch.optim.Optimizer:
        from core.optimizers.steps.low_rank import divided
        from core.optimizers.steps.muon import MuonAndAdamW

        kept = {"momentum": self.momentum, "ns_steps": self.iterations}
        return MuonAndAdamW(divided(model, groups, kept), **self.adam)

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        return width * (2 * numbers(learns) - numbers(matrices(learns, shapes)))
