"""DoRA (Liu et al., arXiv 2402.09353) divides by the length of each row of a weight: no row may be of zeros."""

from __future__ import annotations

from typing import Any

from core.errors import InputError


def check(model: Any, adapter: str) -> None:
    """Raise InputError for a layer with DoRA that has a row of zeros: it would give what is no number."""
    lengths = f".lora_magnitude_vector.{adapter}.weight"
    for name, parameter in model.named_parameters():
        if name.endswith(lengths) and not parameter.all():
            module = name.removesuffix(lengths).removeprefix("base_model.model.")
            raise InputError("lora.dora_zero", "tuner.lora.dora", module=module)
