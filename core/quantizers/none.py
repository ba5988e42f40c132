"""No quantizing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from core.quantizers import Quantizer

if TYPE_CHECKING:
    import torch


class Stored(Quantizer):
    """As stored
    The weights as the model's files have them. Full quality, 2 bytes a weight in bf16."""

    kind: Literal["none"] = "none"

    def bytes(self, rows: int, columns: int, width: int) -> float:
        return width * rows * columns

    def loading(self, dtype: torch.dtype, device: torch.device) -> None:
        return None
