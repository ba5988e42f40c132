"""Weights of a model that are NaN or infinite: its files are looked through once something came out wrong.

So a healthy model costs nothing, and what a run has done to the weights in memory does not matter.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from core.errors import InputError
from core.models.headers import weight_files
from core.models.loading import shorten

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check(model: Any, given: torch.Tensor) -> None:
    """Raise InputError at model.path where a model gives what is no number because weights in its files are none."""
    if given.isnan().any() or given.isposinf().any():  # less than any number are those that are ruled out
        find(model)


def find(model: Any) -> None:
    """Raise InputError at model.path that names the weights in the files of a model that are not finite, if any are."""
    if broken := _broken(str(model.name_or_path)):
        raise InputError("model.not_finite", "model.path", folder=str(model.name_or_path), names=shorten(broken))


@lru_cache(maxsize=8)
def _broken(folder: str) -> tuple[str, ...]:
    """Return the names of the weights, as in the files; packed ones are passed over."""
    found = []
    for file in weight_files(Path(folder), "model.path"):
        with safe_open(file, "pt") as stream:
            for name in stream.keys():  # noqa: SIM118  # no dict
                tensor = stream.get_tensor(name)
                if tensor.dtype in DTYPES and not tensor.isfinite().all():
                    found.append(name)
    return tuple(found)
