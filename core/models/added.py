"""What adapters add to a model, by shapes alone: matrices beside its layers, copies of modules, new rows. Cold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.errors import InputError
from core.models.inspect import has_experts
from core.models.shapes import APART, EXPERT, Linear, Shapes, named
from core.models.tables import HEAD, ROWS, tables, with_bias
from core.models.targets import held


def copied(shapes: Shapes, extra: Sequence[str], tokens: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the weights of which an adapter teaches a copy: those of modules named so.

    tokens: how many are new; a head with a bias, of which rows can't learn, then learns whole.
    """
    if not (wanted := [*extra, *(with_bias(shapes) if tokens else [])]):
        return {}
    return {name: shape for name, shape in shapes.tensors.items() if held(name, wanted, shapes.trunk)}


def beneath(shapes: Shapes, extra: Sequence[str], tokens: int) -> int:
    """Return how many numbers stay beneath such copies."""
    return sum(map(math.prod, copied(shapes, extra, tokens).values()))


def untied(shapes: Shapes, extra: Sequence[str]) -> Shapes:
    """Return the shapes of a model with the head of its own that it gets where a tied one is copied."""
    name = f"{HEAD}.weight"
    if shapes.head or not shapes.table or not named(name, extra):
        return shapes
    return Shapes({**shapes.tensors, name: shapes.embedding}, shapes.config)


def rows(shapes: Shapes, extra: Sequence[str], tokens: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the rows of new tokens in each table that is not copied whole."""
    whole = copied(shapes, extra, tokens)
    named = {name.removesuffix(".weight"): shape for name, shape in tables(shapes).items() if name not in whole}
    return {f"{name}.{ROWS}": (tokens, shape[1]) for name, shape in named.items()} if tokens else {}


def beside_linears(linears: Sequence[Linear], rank: int, *, lengths: bool) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of what LoRA of this rank adds to linear layers; lengths: DoRA's, too."""
    found: dict[str, tuple[int, ...]] = {}
    for linear in linears:
        found[f"{linear.name}.lora_A"] = (rank, linear.columns)
        found[f"{linear.name}.lora_B"] = (linear.rows, rank)
        if lengths:
            found[f"{linear.name}.magnitude"] = (linear.rows,)
    return found


def beside_experts(shapes: Shapes, rank: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of what LoRA of this rank adds to the stacked weights of experts."""
    found: dict[str, tuple[int, ...]] = {}
    for block in shapes.linears:
        of_text = [one for one in block if one.of_expert and not APART.search(one.name)]
        firsts = {_holder(one): one for one in reversed(of_text) if not one.last}
        for linear in of_text:
            found[f"{linear.name}.lora_B"] = (linear.rows, linear.count * rank)
            if linear.last or linear is firsts.get(_holder(linear)):  # in memory gate and up are one matrix, with one A
                found[f"{linear.name}.lora_A"] = (linear.count * rank, linear.columns)
    return found


def check_experts(shapes: Shapes) -> None:
    """Raise InputError for a model without experts that adapters can be put on."""
    if not has_experts(shapes.config):
        raise InputError("lora.no_experts", "tuner.lora.experts", model=shapes.type)
    if any(EXPERT.search(name) for name in shapes.tensors) and not beside_experts(shapes, 1):
        raise InputError("lora.experts_in_one", "tuner.lora.experts", model=shapes.type)


def _holder(linear: Linear) -> str:
    """Return the name of the module that holds a layer."""
    return linear.name.rpartition(".")[0]
