"""The linear layers of a model that an adapter can stand beside: found by walking it, not by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence, Set
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.errors import InputError
from core.models.blocks import blocks, numbered
from core.models.shapes import taken_for_experts
from core.models.targets import apart, elsewhere, means, none_meant, of_experts, shown, within
from core.models.vocabulary import by_rows

KINDS = ("FalconLinear", "Linear4bit", "Linear8bitLt", "QuantLinear", "QuantizedLinear", "HQQLinear", "EetqLinear",
         "QLinear")  # fmt: skip
"""How the classes of linear layers, or of what they are kinds of, end that compute in a way of their own: Falcon's, and
quantized ones (bitsandbytes, gptqmodel, aqlm, hqq, eetq, quanto)."""
FUSED = ("out_proj", "x_proj", "dt_proj")
"""Layers of Mamba's kin whose weights a fused kernel reads past any adapter."""


def linear(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers of the text part: not the head, no router, no tower that sees or hears."""
    return [name for name, parts in _takers(model, tables=False).items() if not parts]


def short(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Return the last parts of names where they mean the same layers: that is how adapters are read elsewhere."""
    lasts = sorted({name.rpartition(".")[2] for name in names})
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in lasts]
    return lasts if sorted(meant) == sorted(names) else names


def chosen(
    model: PreTrainedModel, targets: Sequence[str], place: str, layers: Collection[int] | None = None, *,
    lora: bool, whole: Collection[str] = (),
) -> list[str]:  # fmt: skip
    """Return the modules that targets mean (see core.models.targets), outside of those that learn whole.

    layers: numbers of the blocks in which they lie; None: in all, and outside of them. lora: for LoRA, which tables
    take, too, but not what peft would take for experts. Raises InputError at `place` for a target that fits none.
    """
    takers = _takers(model, tables=lora)
    found: dict[str, None] = {}
    for target in targets:
        fitting = [name for name, parts in takers.items() if means(target, name, parts)]
        if not fitting:
            modules = [name for name, _ in model.named_modules() if name]
            raise none_meant(model.config.model_type, target, takers, modules, place, lora=lora)
        if layers is not None:
            fitting = [name for name, number in numbered(model, fitting).items() if number in layers]
        if not fitting:
            raise elsewhere(target, len(blocks(model)[1]))
        if lora:
            fitting = [name for name in fitting if not taken_for_experts(model.config.model_type, name)]
        if not fitting:
            raise of_experts(model.config.model_type, target, place)
        found |= dict.fromkeys(fitting)
    left = [name for name in found if not any(f"{name}.".startswith(f"{module}.") for module in whole)]
    if not left:
        raise InputError("lora.all_whole", "tuner.lora.extra", module=", ".join(whole))
    return short(model, left)


def for_lora(
    model: PreTrainedModel, targets: Sequence[str], layers: str, extra: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return (the modules that get LoRA by these settings, those that learn whole)."""
    whole = wholly(model, extra, "tuner.lora.extra")
    numbers = within(layers, len(blocks(model)[1])) if layers else None
    return chosen(model, targets, "tuner.lora.targets", numbers, lora=True, whole=whole), whole


def wholly(model: PreTrainedModel, names: Sequence[str], place: str, *, tied: bool = True) -> list[str]:
    """Return the modules that names mean, or ends of names from a dot on; none that lies within another of them.

    Modules beside the text part, as those that see, must be named by a path into these. tied: whether modules count all
    of whose weights are another's. Raises InputError at `place` for a name that means none with weights: lists of
    modules are no modules to copy.
    """
    trunk, lists = _decoder(model), (torch.nn.ModuleList, torch.nn.ModuleDict)
    paths = [name.split(".") for name, _ in model.named_parameters(remove_duplicate=not tied)]
    having = {".".join(path[:end]) for path in paths for end in range(1, len(path))}
    holders = [name for name, module in model.named_modules() if name in having and not isinstance(module, lists)]
    found: dict[str, None] = {}
    for given in names:
        fitting = [name for name in holders if f".{name}".endswith(f".{given}")]
        missing = {name: [part for part in sorted(apart(name, trunk)) if part not in given] for name in fitting}
        meant = [name for name in fitting if not missing[name]]
        if fitting and not meant:
            raise InputError("tuner.apart", place, module=given, part=missing[fitting[0]][0])
        if not meant:
            there = any(f".{name}".endswith(f".{given}") for name, _ in model.named_modules())
            known = [name for name in holders if not f"{trunk}.".startswith(f"{name}.")]
            known = [name for name in known if apart(name, trunk) <= {name.rpartition(".")[2]}]
            code = "tuner.not_whole" if there else "tuner.no_module"
            raise InputError(code, place, module=given, known=_lasts(known, given))
        found |= dict.fromkeys(meant)
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def as_ends(model: PreTrainedModel, given: Sequence[str], meant: list[str]) -> list[str]:
    """Return names as they were given where peft, which asks for no dot before an end, takes them for what is meant."""
    taken = [name for name, _ in model.named_modules() if given and name.endswith(tuple(given))]
    return list(given) if sorted(taken) == sorted(meant) else meant


def _takers(model: PreTrainedModel, *, tables: bool) -> dict[str, Set[str]]:
    """Return the layers that can take an adapter: name -> the parts of it that a target must hold to mean them."""
    head, trunk = model.get_output_embeddings(), _decoder(model)
    fused = {f"{name}.{part}" for name, module in model.named_modules()
             if re.search(r"[Mm]amba|Mixer$", type(module).__name__) for part in FUSED}  # fmt: skip
    found = {}
    for name, module in model.named_modules():
        table = isinstance(module, torch.nn.Embedding) and by_rows(module)
        if name not in fused and (_multiplies(module) or (table and tables)):
            found[name] = apart(name, trunk) | ({name.rpartition(".")[2]} if table or module is head else set())
    return found


def _lasts(names: Sequence[str], near: str) -> str:
    return shown((name.rpartition(".")[2] for name in names), near)


def _multiplies(module: torch.nn.Module) -> bool:
    """Return whether a module multiplies by its weight and does nothing else."""
    kind = type(module)
    return any(base.__name__.endswith(KINDS) for base in kind.__mro__) or kind.forward in (
        torch.nn.Linear.forward,
        Conv1D.forward,
    )


def _decoder(model: Any) -> str:
    """Return the name of the part that writes text; "" where the model is nothing else."""
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "")
