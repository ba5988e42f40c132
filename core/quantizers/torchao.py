"""Weights in 8 or 4 bits by torchao (github.com/pytorch/ao)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.errors import InputError
from core.quantizers import Quantizer
from core.schema import knob

if TYPE_CHECKING:
    import torch


class TorchAo(Quantizer):
    """torchao
    8 or 4 bits by PyTorch's own library. Runs on any device, needs the package torchao."""

    kind: Literal["torchao"] = "torchao"
    package: ClassVar = "torchao"
    type: Literal["int8", "float8", "int4"] = knob("int8")
    """Numbers
    int8 runs everywhere; float8 keeps very large and small weights better; int4 needs a GPU."""

    def bytes(self, rows: int, columns: int, width: int) -> float:
        return rows * columns * (0.5 + 4 / 128 if self.type == "int4" else 1) + 4 * rows

    def check(self, device: str) -> None:
        super().check(device)
        if self.type == "int4" and device != "cuda":
            raise InputError("quantizer.device", "model.quantizer.torchao.type", given="int4", device=device)

    def loading(self, dtype: torch.dtype, device: torch.device) -> Any:
        from core.models.packages import require

        self.check(device.type)
        require(self.package, "model.quantizer")
        from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        kinds = {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig, "int4": Int4WeightOnlyConfig}
        return TorchAoConfig(kinds[self.type]())
