"""Which layers targets mean, by names alone, so that the planner and the tuners agree. Cold.

A target is a name, the end of a name from a dot on, or a regular expression of a whole name. Whatever it is, it means
layers of the text part; heads, tables of tokens, what chooses experts, and what sees or hears must be named by it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

from pydantic_core import PydanticCustomError

from core.models.adapter_check import endless
from core.models.shapes import APART, Linear, Shapes, named

FUSED = re.compile(r"\.(mamba|mixer)\.(out_proj|x_proj|dt_proj)$")
"""Layers of Mamba's kin whose weights a fused kernel reads past any adapter."""


def ending(targets: list[str]) -> list[str]:
    """Return targets; raise the error of their setting, at its place, for one that might match without end."""
    if given := next(filter(endless, targets), ""):
        raise PydanticCustomError("tuner.endless", "a pattern without end", {"given": given[:80]})
    return targets


def fits(name: str, target: str) -> bool:
    """Return whether a target fits the name of a layer.

    Files may call it otherwise than the model in memory does: without "model.", or with it within language_model.
    """
    bare = name.removeprefix("model.").replace("language_model.model.", "language_model.", 1)
    names = (name, bare, f"model.{bare}")
    try:
        return any(f".{one}".endswith(f".{target}") or re.fullmatch(target, one) for one in names)
    except re.error:
        return False  # said where the adapter is attached


def apart(name: str, trunk: str) -> set[str]:
    """Return the parts of a name that a target must hold to mean that layer.

    trunk: name of the module that holds the text blocks; what branches off before it is none of the text part.
    """
    parts, path = name.split("."), trunk.split(".") if trunk else []
    common = next((i for i, pair in enumerate(zip(parts, path, strict=False)) if pair[0] != pair[1]), len(path))
    return {part for part in parts if APART.search(part)} | set(
        parts[common : common + 1] if common < len(path) else ()
    )


def means(target: str, name: str, parts: set[str]) -> bool:
    """Return whether a target means a layer, of whose name it must hold these parts."""
    return not parts if target == "all-linear" else all(part in target for part in parts) and fits(name, target)


def targeted(
    shapes: Shapes, targets: Sequence[str], layers: Container[int] | None = None, whole: Sequence[str] = ()
) -> list[Linear]:
    """Return the linear layers that targets mean.

    layers: numbers of the blocks that count; None for all, and for what lies outside of them. whole: names of modules
    that learn whole, within which nothing else does.
    """
    trunk = shapes.stack.rpartition(".")[0]
    chosen = (block for number, block in enumerate(shapes.linears) if layers is None or number in layers)
    linears = [linear for block in chosen for linear in block if not linear.of_expert]
    return [
        linear
        for linear in [*linears, *(_outside(shapes, trunk) if layers is None else [])]
        if not FUSED.search(linear.name) and not named(linear.name, whole)
        if any(means(target, linear.name, apart(linear.name, trunk)) for target in targets)
    ]


def _outside(shapes: Shapes, trunk: str) -> list[Linear]:
    """Return the layers of what sees and hears, and of what stands between that and the text part: no tables."""
    found = {name.removesuffix(".weight"): shape for name, shape in shapes.tensors.items()
             if len(shape) == 2 and name.endswith(".weight") and name not in (shapes.head, shapes.table)}  # fmt: skip
    beside = {name: shape for name, shape in found.items() if trunk and not name.startswith(f"{trunk}.")}
    return [Linear(name, *shape) for name, shape in beside.items() if "embed" not in name.rpartition(".")[2]]
