"""4 bits by bitsandbytes: the base of QLoRA (Dettmers et al., arXiv 2305.14314)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.quantizers import Quantizer
from core.schema import knob

if TYPE_CHECKING:
    import torch

Format = Literal["auto", "bf16", "fp16", "fp32"]


class Bnb4Bit(Quantizer):
    """4 bit
    A quarter of the memory of bf16, with an adapter above it: QLoRA. A little slower, nearly as good."""

    kind: Literal["bnb_4bit"] = "bnb_4bit"
    package: ClassVar = "bitsandbytes"
    type: Literal["nf4", "fp4"] = knob("nf4", expert=True)
    """4-bit numbers
    nf4 fits weights that are spread like a bell; fp4 is the older kind."""
    double: bool = knob(True, expert=True)
    """Double quantization
    Quantize the scales, too: saves 0.4 bits a weight and costs next to nothing."""
    compute: Format = knob("auto", expert=True)
    """Computation
    Number format in which the unpacked weights are multiplied. Auto takes that of the model."""
    storage: Literal["uint8", "bf16", "fp16", "fp32"] = knob("uint8", expert=True)
    """Storage
    Type of the packed weights. Sharded training (FSDP) wants the format of the computation; else leave it."""

    def bytes(self, rows: int, columns: int, width: int) -> float:
        scales = rows * columns / 64  # one for each block
        return rows * columns / 2 + scales * (1 + 4 / 256 if self.double else 4)

    def loading(self, dtype: torch.dtype, device: torch.device) -> Any:
        import torch
        from transformers import BitsAndBytesConfig

        from core.models.device import DTYPES
        from core.models.packages import require

        require(self.package, "model.quantizer")
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.type,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=DTYPES.get(self.compute, dtype),
            bnb_4bit_quant_storage=DTYPES.get(self.storage, torch.uint8),
        )
