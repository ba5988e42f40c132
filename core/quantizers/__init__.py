"""In how many bits the weights that stay are held: one file, one way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from core.models.packages import check_here
from core.schema import Spec

if TYPE_CHECKING:
    import torch


class Quantizer(Spec):
    """A way to hold weights in fewer bits; `kind` names it."""

    kind: str
    package: ClassVar[str] = ""
    """What must be installed for it."""

    def check(self, device: str) -> None:
        """Raise InputError, at model.quantizer, for what this machine lacks; device: "cpu", "cuda" or "mps"."""
        if self.package:
            check_here(self.package, "model.quantizer")

    def bytes(self, rows: int, columns: int, width: int) -> float:
        """Return the bytes of a matrix; width: those of a number that is not packed."""
        raise NotImplementedError

    def loading(self, dtype: torch.dtype, device: torch.device) -> Any:
        """Return what from_pretrained takes as quantization_config; None: the weights as they are stored.

        dtype: number format of the computation. Raises InputError, at model.quantizer, for what is missing here.
        """
        raise NotImplementedError
