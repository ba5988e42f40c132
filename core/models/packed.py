"""Models that come in few bits: what each way of packing needs, and whether something can be trained above it. Cold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import InputError
from core.models.headers import Tensor
from core.models.shapes import APART, Shapes


@dataclass(frozen=True)
class Packing:
    """A `quant_method` of a config.json."""

    packages: tuple[str, ...] = ()
    """What must be installed to read it."""
    cuda: bool = False
    """Whether it needs an NVIDIA GPU."""
    unpacked: bool = False
    """Whether we have transformers unpack it to the number format of the computation: its own kernels would be fetched
    from the hub, or can't be trained through."""
    asks: bool = False
    """Whether its package must be asked for kernels that gradients pass through: by itself it takes the fastest."""
    trains: bool = True
    """Whether gradients pass through it, so that an adapter can learn."""


PACKINGS = {
    "aqlm": Packing(("aqlm",)),
    "auto-round": Packing(("auto_round",), trains=False),
    "awq": Packing(("gptqmodel",), asks=True),
    "bitnet": Packing(trains=False),
    "bitsandbytes": Packing(("bitsandbytes",)),
    "compressed-tensors": Packing(("compressed_tensors",), unpacked=True),
    "fbgemm_fp8": Packing(("fbgemm_gpu",), cuda=True, trains=False),
    "fp8": Packing(unpacked=True),
    "gptq": Packing(("gptqmodel", "optimum"), asks=True),
    "hqq": Packing(("hqq",), cuda=True),
    "mxfp4": Packing(unpacked=True),
    "mxfp8": Packing(unpacked=True),
    "quanto": Packing(("optimum.quanto",)),
    "torchao": Packing(("torchao",)),
    "vptq": Packing(("vptq",), cuda=True, trains=False),
}
"""What transformers 5.23 reads (quantizers/auto.py), as far as its checks tell what each needs."""


READ_PAST: Mapping[str, tuple[str, ...]] = {"mamba": ("x_proj", "dt_proj", "out_proj")}
"""Type of model -> layers whose weights it multiplies itself, past the layer: packed ones it could not."""
SHARED: Mapping[str, tuple[str, ...]] = {"zamba": ("shared_transf",)}
"""Type of model -> modules of which several places share the weights: transformers leaves those as they are."""

OF_THEIR_OWN = ("falcon",)
"""Types of model all of whose linear layers are of a class of their own: bitsandbytes would leave them as they are."""


def stays(model_type: str, module: str) -> bool:
    """Return whether bitsandbytes leaves a linear layer as it is, by its name."""
    whole = {*READ_PAST.get(model_type, ()), *SHARED.get(model_type, ())}
    return not whole.isdisjoint(module.split("."))


def in_bits(tensors: Mapping[str, Tensor], model_type: str, quantizer: str) -> tuple[list[str], bool]:
    """Return (names of the layers that bitsandbytes has packed, or surely would pack, whether in 8 bits).

    tensors: what the files hold. quantizer: the kind of the one of the settings.
    """
    eight = [name.removesuffix(".SCB") for name in tensors if name.endswith(".SCB")]
    four = [name.removesuffix(".weight.absmax") for name in tensors if name.endswith(".weight.absmax")]
    if eight or four:
        return [*eight, *four], bool(eight)
    plain = Shapes({name: entry.shape for name, entry in tensors.items()}, {}).layers
    return [name for name in plain if not (APART.search(name) or stays(model_type, name))], quantizer == "bnb_8bit"


def packs_little(model_type: str) -> InputError:
    """Return the error for a model of whose weights bitsandbytes would leave most as they are."""
    return InputError("quantizer.packs_little", "model.quantizer", type=model_type)


def method(config: Mapping[str, Any]) -> str:
    """Return the quant_method of a config.json, "" where the weights are as they were trained."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(found, Mapping):
        return ""
    named = str(found.get("quant_method") or "")
    if not named and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        return "bitsandbytes"
    return named or "?"


def packing(name: str, place: str = "model.path") -> Packing:
    """Return what a way of packing needs; raise InputError for one that nobody here knows."""
    if name not in PACKINGS:
        raise InputError("packed.unknown", place, given=name, known=", ".join(PACKINGS))
    return PACKINGS[name]
