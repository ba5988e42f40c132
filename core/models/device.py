"""Which device computes, and in which number format."""

from __future__ import annotations

import os

import torch

from core.errors import DeviceError
from core.models.room import WORTHWHILE
from core.sections import Hardware, Model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "pure_bf16": torch.bfloat16}


def pick_device(hardware: Hardware) -> torch.device:
    """Return the device that the settings mean; auto is the first there is of cuda, mps, cpu.

    Raises DeviceError("device.none") when the device asked for is absent.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name, there in present.items() if there) if hardware.device == "auto" else hardware.device
    if not present[name]:
        raise DeviceError("device.none", "hardware.device", device=name)
    local = os.environ.get("LOCAL_RANK")  # each of several processes has a GPU of its own
    return torch.device(name, int(local)) if name == "cuda" and local else torch.device(name)


def training_dtype(model: Model, device: torch.device, weights: int) -> torch.dtype:
    """Return the number format in which training multiplies; weights: how many are not held in few bits.

    Auto is also bf16 on a CPU that multiplies bf16 itself, if the model is not tiny. Measured with AVX-512 BF16 and one
    thread, tokens a second against fp32: 0.84 with 2 million weights, 1.1 to 1.3 with 5, 1.2 to 1.4 with 20, 1.5 with
    58, 1.7 with 98; losses differ by about 1 % at most.
    """
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if model.precision == "auto" and device.type == "cpu" and native and weights >= WORTHWHILE:
        return torch.bfloat16
    return compute_dtype(model, device)


def compute_dtype(model: Model, device: torch.device) -> torch.dtype:
    """Return the number format of answers and of weights; auto is bf16 on a GPU that has it, fp32 anywhere else.

    A CPU computes fp16 as fp32: training scales losses for fp16 on GPUs alone.
    """
    if model.precision == "fp16" and device.type == "cpu":
        return torch.float32
    if model.precision != "auto":
        return DTYPES[model.precision]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
