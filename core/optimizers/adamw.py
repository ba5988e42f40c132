"""AdamW: the default optimizer (Loshchilov and Hutter, arXiv 1711.05101)."""

from __future__ import annotations

import math
from typing import Any, Literal

from core.errors import InputError
from core.models.shapes import Shapes
from core.optimizers import Learning, Moments, Optimizer, numbers
from core.schema import knob

NAMES = {
    "fused": "adamw_torch_fused", "8bit": "adamw_8bit", "paged_8bit": "paged_adamw_8bit",
    "paged_32bit": "paged_adamw_32bit",
}  # fmt: skip
BLOCK, LEAST = 256, 4096
"""Numbers that share a scale in 8 bits; weights with fewer than the second are kept in 32 (bitsandbytes)."""
TABLES = 2 * 256 * 4
"""Bytes of what 8 bits mean, once for all weights."""


class AdamW(Moments, Optimizer):
    """AdamW
    Adam with decoupled weight decay: the safe choice for every tuner."""

    kind: Literal["adamw"] = "adamw"
    variant: Literal["fused", "8bit", "paged_8bit", "paged_32bit"] = knob("fused", expert=True)
    """State
    How its memory is held. 8bit takes a quarter of it and learns nearly the same: good for full tuning. Paged ones move
    to the memory of the machine when the GPU is full, and need an NVIDIA GPU."""

    def arguments(self) -> dict[str, Any]:
        betas = {"adam_beta1": self.beta1, "adam_beta2": self.beta2, "adam_epsilon": self.epsilon}
        return super().arguments() | betas | {"optim": NAMES[self.variant]}

    def check(self, device: str) -> None:
        from core.models.packages import check_here

        if self.variant != "fused":
            check_here("bitsandbytes", "optimizer.adamw.variant")
        if self.variant.startswith("paged") and device != "cuda":
            raise InputError("optimizer.paged", "optimizer.adamw.variant", device=device)

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        # means of the gradient and of its square
        if self.variant == "fused":
            return 2 * width * numbers(learns)
        if self.variant == "paged_32bit":
            return 2 * 4 * numbers(learns)
        sizes = {name: math.prod(shape) for name, shape in learns.items()}
        packed = {name for name, size in sizes.items() if size >= LEAST and name != shapes.table}
        held = sum(2 * (size + 4 * math.ceil(size / BLOCK)) if name in packed else 2 * 4 * size
                   for name, size in sizes.items())  # fmt: skip
        return held + (TABLES if packed else 0)
