"""8 bits by bitsandbytes: LLM.int8() (Dettmers et al., arXiv 2208.07339)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.quantizers import Quantizer
from core.schema import knob

if TYPE_CHECKING:
    import torch


class Bnb8Bit(Quantizer):
    """8 bit
    Half the memory of bf16, with an adapter above it. Closer to the original than 4 bit, slower on a GPU."""

    kind: Literal["bnb_8bit"] = "bnb_8bit"
    package: ClassVar = "bitsandbytes"
    threshold: float = knob(6.0, ge=0, le=1000, expert=True)
    """Outlier threshold
    Columns with larger inputs are computed in 16 bits. 0 computes all in 8. Typical: 6."""

    def bytes(self, rows: int, columns: int, width: int) -> float:
        return rows * columns + 4 * rows  # and a scale for each row

    def loading(self, dtype: torch.dtype, device: torch.device) -> Any:
        from transformers import BitsAndBytesConfig

        from core.models.packages import require

        require(self.package, "model.quantizer")
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.threshold)
