"""Half-quadratic quantization (github.com/mobiusml/hqq)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.errors import InputError
from core.quantizers import Quantizer
from core.schema import knob

if TYPE_CHECKING:
    import torch


class Hqq(Quantizer):
    """HQQ
    2 to 8 bits, found by calculation and without data. Needs a GPU and the package hqq."""

    kind: Literal["hqq"] = "hqq"
    package: ClassVar = "hqq"
    bits: Literal[8, 4, 3, 2] = knob(4)
    """Bits
    Of each weight. Fewer save memory and cost quality."""
    group: int = knob(64, ge=8, le=4096, expert=True)
    """Group size
    Weights that share a scale. Typical: 64."""

    def bytes(self, rows: int, columns: int, width: int) -> float:
        return rows * columns * (self.bits / 8 + 4 / self.group)  # and a scale and a zero point for each group

    def check(self, device: str) -> None:
        if device != "cuda":
            raise InputError("quantizer.device", "model.quantizer", given=self.kind, device=device)
        super().check(device)

    def loading(self, dtype: torch.dtype, device: torch.device) -> Any:
        from transformers import HqqConfig

        from core.models.packages import require

        self.check(device.type)
        require(self.package, "model.quantizer")
        return HqqConfig(nbits=self.bits, group_size=self.group)
