"""FSDP2 (Zhao et al., arXiv 2304.11277; torch.distributed.fsdp): every process holds a part of each weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.errors import InputError
from core.launchers import Against, Several
from core.schema import knob

if TYPE_CHECKING:
    from core.run import Run


class Fsdp2(Several):
    """FSDP2
    The GPUs divide weights, gradients and optimizer state among them, and put a block together while it is computed:
    for models that are too large for one GPU. Needs NVIDIA GPUs."""

    kind: Literal["fsdp2"] = "fsdp2"
    wrapper: ClassVar = "FSDP"
    state: ClassVar = frozenset({"optimizer.bin"})
    keep_weights: bool = knob(False, expert=True)
    """Keep weights between passes
    Leave a block together after the forward pass: faster, and takes more memory."""
    offload: bool = knob(False, expert=True)
    """Offload
    Let weights and optimizer state wait in the memory of the machine: slower, for larger models."""

    @property
    def divides(self) -> tuple[bool, bool]:
        return True, True

    def arguments(self) -> dict[str, Any]:
        config = {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": not self.keep_weights,
            "cpu_offload": self.offload,
            "state_dict_type": "FULL_STATE_DICT",
        }
        return {"fsdp": True, "fsdp_config": config}

    def check(self, device: str) -> None:
        if device != "cuda":
            raise InputError("launcher.gpus", "launcher")

    def against(self, run: Run) -> Against | None:
        if run.hardware.device == "cpu":
            return "launcher.gpus", "hardware.device"
        quantizer = run.model.quantizer
        if quantizer.kind not in ("none", "bnb_4bit"):
            return "launcher.quantizer", "model.quantizer"
        if quantizer.kind == "bnb_4bit" and quantizer.model_dump()["storage"] == "uint8":
            return "launcher.storage", "model.quantizer.bnb_4bit.storage"
        return self.against_division(run) or super().against(run)
