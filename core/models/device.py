"""Which device computes, and in which number format."""

from __future__ import annotations

import torch

from core.errors import DeviceError
from core.sections import Hardware, Model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(hardware: Hardware) -> torch.device:
    """Return the device that the settings mean; auto is the first there is of cuda, mps, cpu.

    Raises DeviceError("device.none") when the device asked for is absent.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name, there in present.items() if there) if hardware.device == "auto" else hardware.device
    if not present[name]:
        raise DeviceError("device.none", "hardware.device", device=name)
    return torch.device(name)


def compute_dtype(model: Model, device: torch.device) -> torch.dtype:
    """Return the number format of the computation; auto is bf16 on a GPU that has it, fp32 anywhere else."""
    if model.precision != "auto":
        return DTYPES[model.precision]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
