"""Whether all that bitsandbytes reads of packed weights is in the files of a model, as large as it must be, and finite.

Neither it nor transformers looks: what is cut short is read past its end.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from core.errors import InputError
from core.models.headers import Tensor, header, tensors, weight_files
from core.models.names import shorten

PLACE = "model.path"
STATE = ".quant_state.bitsandbytes__"
BESIDE = re.compile(rf"(.*\.weight)(\.(nested_)?(absmax|quant_map)|{re.escape(STATE)}\w+)$")
"""What lies beside a weight in 4 bits, by its name."""
FLOATS = ("F64", "F32", "F16", "BF16")
TYPES, NUMBERS = ("nf4", "fp4"), ("float32", "float16", "bfloat16")
"""What a weight in 4 bits may be of, and in what it is computed: bitsandbytes takes any name of torch."""
BLOCKS = tuple(32 << power for power in range(8))
KEYS = {"quant_type", "blocksize", "dtype", "shape"}
NESTED = {"nested_blocksize", "nested_dtype", "nested_offset"}


def check(folder: Path, layers: Mapping[str, tuple[int, ...]], *, eight: bool) -> None:
    """Raise InputError at model.path for a folder in whose files something of packed weights is missing or damaged.

    layers: name -> shape of each layer that is packed, as the model has it in memory. eight: whether in 8 bits.
    """
    entries = tensors(folder, PLACE)
    states, broken = _small(folder)
    if broken:
        raise InputError("model.not_finite", PLACE, folder=str(folder), names=shorten(broken))
    weights = {f"{name}.weight": shape for name, shape in layers.items() if f"{name}.weight" in entries}
    missing: set[str] = set()
    odd: set[str] = set()
    for name in {*weights, *_packed(entries, eight=eight)}:
        found = _eight(name, entries) if eight else _four(name, entries, states, weights.get(name))
        for other, fits in found:
            if other not in entries:
                missing.add(other)
            elif not fits:
                odd.add(other)
    if missing:
        raise InputError("model.weights_missing", PLACE, folder=str(folder), names=shorten(missing))
    if odd:
        raise InputError("packed.broken", PLACE, folder=str(folder), names=shorten(odd))


def _packed(entries: Mapping[str, Tensor], *, eight: bool) -> set[str]:
    """Return the names of the packed weights, as in the files."""
    if eight:
        return {name for name, entry in entries.items() if entry.dtype == "I8" and name.endswith(".weight")}
    return {match[1] for name in entries if (match := BESIDE.match(name))}


def _eight(name: str, entries: Mapping[str, Tensor]) -> Iterator[tuple[str, bool]]:
    """Yield (name, whether it is as it must be) for a weight in 8 bits and the scales of its rows."""
    yield name, entries[name].dtype == "I8" and len(entries[name].shape) == 2
    scales = f"{name.removesuffix('weight')}SCB"
    if scales in entries:
        yield scales, entries[scales].dtype in FLOATS and entries[scales].size == entries[name].shape[0]
    else:
        yield scales, False


def _four(
    name: str, entries: Mapping[str, Tensor], states: Mapping[str, Any], shape: tuple[int, ...] | None
) -> Iterator[tuple[str, bool]]:
    """Yield (name, whether it is as it must be) for a weight in 4 bits and all beside it; shape: as it must be."""
    told = next((key for key in states if key.startswith(f"{name}{STATE}")), f"{name}{STATE}nf4")
    state: Any = states.get(told)
    nested = any(f"{name}.nested_{kind}" in entries for kind in ("absmax", "quant_map"))
    nested = nested or (isinstance(state, dict) and not NESTED.isdisjoint(state))
    right = _sound(state, shape, nested=nested) and told.endswith(f"__{state['quant_type']}")
    yield told, right
    wanted = {".quant_map": 16, ".absmax": 0} | ({".nested_quant_map": 256, ".nested_absmax": 0} if nested else {})
    if right:
        size = math.prod(state["shape"])
        yield name, name in entries and entries[name].bytes == (size + 1) // 2
        wanted[".absmax"] = math.ceil(size / state["blocksize"])
        if nested:
            wanted[".nested_absmax"] = math.ceil(wanted[".absmax"] / state["nested_blocksize"])
    for end, count in wanted.items():
        kind = "U8" if nested and end == ".absmax" else "F32"
        found = entries.get(name + end)
        yield name + end, found is not None and found.dtype == kind and count in (0, found.size)


def _sound(state: Any, shape: tuple[int, ...] | None, *, nested: bool) -> bool:
    """Return whether what is said of a weight in 4 bits makes sense. nested: whether its scales are packed, too."""
    if not isinstance(state, dict) or set(state) != (KEYS | NESTED if nested else KEYS):
        return False
    sizes, offset = state["shape"], state.get("nested_offset", 0.0)
    if not isinstance(sizes, list) or len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
        return False
    blocks = state["blocksize"], state.get("nested_blocksize", 64)
    numbers = state["dtype"], state.get("nested_dtype", "float32")
    return (
        tuple(sizes) == (shape or tuple(sizes))
        and state["quant_type"] in TYPES
        and all(type(block) is int and block in BLOCKS for block in blocks)
        and all(number in NUMBERS for number in numbers)
        and isinstance(offset, float | int)
    )


def _small(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return (name -> what files say of each weight in 4 bits, names of scales and the like that are not finite)."""
    states: dict[str, Any] = {}
    broken: list[str] = []
    for file in weight_files(folder, PLACE):
        entries = header(file, PLACE)
        scales = [name for name in entries if name.endswith(".SCB") or BESIDE.match(name)]
        with safe_open(file, "pt") as stream:
            for name in scales:
                if STATE in name:
                    states[name] = _told(stream.get_tensor(name))
                elif entries[name].dtype in FLOATS and not stream.get_tensor(name).isfinite().all():
                    broken.append(name)
    return states, broken + [name for name, state in states.items() if _endless(state)]


def _endless(state: Any) -> bool:
    """Return whether the mean of packed scales is no finite number."""
    offset = state.get("nested_offset") if isinstance(state, dict) else None
    return isinstance(offset, float) and not math.isfinite(offset)


def _told(text: torch.Tensor) -> Any:
    """Return what a text in JSON says; None where it is none."""
    try:
        return json.loads(bytes(text.flatten().tolist()))
    except (ValueError, TypeError, RecursionError):
        return None
