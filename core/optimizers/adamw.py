"""AdamW: the default optimizer (Loshchilov and Hutter, arXiv 1711.05101)."""

from __future__ import annotations

from typing import Any, Literal

from core.optimizers import Optimizer
from core.schema import knob


class AdamW(Optimizer):
    """AdamW
    Adam with decoupled weight decay: the safe choice for every tuner."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = knob(2e-4, gt=0, le=1)
    """Learning rate
    Size of a step. Lower it when the loss jumps or the model forgets; raise it when the loss falls too slowly.
    Typical: 1e-4 to 5e-4 for LoRA, 1e-5 to 5e-5 for full tuning; tiny models bear ten times more."""
    weight_decay: float = knob(0.0, ge=0, le=1, expert=True)
    """Weight decay
    Pull of the weights towards zero. Raise it a little when a full tuning overfits. Typical: 0 to 0.1."""
    beta1: float = knob(0.9, ge=0, lt=1, expert=True)
    """Beta 1
    Memory of the mean of the gradient. Rarely changed. Typical: 0.9."""
    beta2: float = knob(0.999, ge=0, lt=1, expert=True)
    """Beta 2
    Memory of the square of the gradient. Lower it when the loss spikes in long runs. Typical: 0.95 to 0.999."""
    epsilon: float = knob(1e-8, gt=0, le=1e-2, expert=True)
    """Epsilon
    Guard against division by zero. Rarely changed. Typical: 1e-8."""

    def arguments(self) -> dict[str, Any]:
        return {
            "optim": "adamw_torch_fused",
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "adam_beta1": self.beta1,
            "adam_beta2": self.beta2,
            "adam_epsilon": self.epsilon,
        }
