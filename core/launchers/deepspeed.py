"""DeepSpeed (Rajbhandari et al., arXiv 1910.02054): each process holds a part of what training keeps (ZeRO)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.launchers import Against, Several
from core.schema import knob

if TYPE_CHECKING:
    from core.run import Run

AUTO = "auto"
"""Trainer fills in what its own arguments say."""


class DeepSpeed(Several):
    """DeepSpeed ZeRO
    The processes divide gradients and optimizer state among them, with stage 3 the weights, too: for models that are
    too large for one GPU."""

    kind: Literal["deepspeed"] = "deepspeed"
    package: ClassVar = "deepspeed"
    wrapper: ClassVar = "DeepSpeedEngine"
    state: ClassVar = frozenset({"latest"})
    zero: Literal[2, 3] = knob(2)
    """ZeRO stage
    What is divided: with 2 gradients and optimizer state, with 3 the weights, too, which takes more traffic."""
    offload: Literal["none", "optimizer", "all"] = knob("none", expert=True)
    """Offload
    What waits in the memory of the machine instead of that of the GPU: the optimizer state, with stage 3 also the
    weights. Slower, for larger models."""

    @property
    def divides(self) -> tuple[bool, bool]:
        return True, self.zero == 3

    def arguments(self) -> dict[str, Any]:
        there = {"device": "cpu", "pin_memory": False}
        zero: dict[str, Any] = {"stage": self.zero, "overlap_comm": False, "contiguous_gradients": True}
        if self.offload != "none":
            zero["offload_optimizer"] = there
        if self.offload == "all":
            zero["offload_param"] = there
        if self.zero == 3:
            names = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
            zero |= dict.fromkeys(names, AUTO) | {"stage3_gather_16bit_weights_on_model_save": True}
        config = {
            "train_micro_batch_size_per_gpu": AUTO,
            "gradient_accumulation_steps": AUTO,
            "train_batch_size": AUTO,
            "gradient_clipping": AUTO,
            "bf16": {"enabled": AUTO},
            "fp16": {"enabled": AUTO},
            "zero_optimization": zero,
            # the optimizers of the settings, also for weights that wait elsewhere
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        return {"deepspeed": config}

    def against(self, run: Run) -> Against | None:
        if self.offload == "all" and self.zero != 3:
            return "launcher.offload", "launcher.deepspeed.offload"
        if self.zero == 3 and run.model.quantizer.kind != "none":
            return "launcher.quantizer", "model.quantizer"
        return self.against_division(run) or super().against(run)
