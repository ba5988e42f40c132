"""Which layers targets mean, by names alone, so that the planner and the tuners agree. Cold.

A target is a name, the end of a name from a dot on, or a regular expression of a whole name. Whatever it is, it means
layers of the text part; heads, tables of tokens, what chooses experts, and what sees or hears must be named by it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from functools import lru_cache

import regex
from pydantic_core import PydanticCustomError

from core.errors import InputError
from core.models.adapter_check import MAX_PATTERN
from core.models.registry import of_type
from core.models.shapes import APART, HEADS, LOOKED_UP, Linear, Shapes, called, taken_for_experts
from core.patterns import translated

TABLE = re.compile(r"embed[^.]*$|(^|\.)wpe$")
FUSED = re.compile(r"\.(mamba|mixer)\.(out_proj|x_proj|dt_proj)$|\.o_a_proj$")
"""Layers of Mamba's kin whose weights a fused kernel reads past any adapter; those of DeepSeek V4 that multiply each
group of heads apart."""
CHOOSER = re.compile(r"\.(mlp|feed_forward|mixer)\.(gate|router)$")
"""What chooses experts and is no layer in memory, but a module of its own."""

RENAMED = (
    "deepseek_v4", "ernie4_5_vl_moe", "glm5_next", "granite_speech", "granitemoe", "granitemoehybrid", "hunyuan_vl",
    "hy_v3", "idefics2", "kimi_k25", "kimi_linear", "laguna", "minimax", "minimax_m2", "mixtral", "molmo2",
    "nemotron_h", "nemotron_h_omni", "olmo_hybrid", "paddleocr_vl", "phimoe", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl",
    "qwen3_omni_moe", "step3p7", "zamba",
)  # fmt: skip
"""Types of the registry whose files have other names or matrices than the model in memory; or one of what it shares."""
RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
"""One part of a list of layers: the first and the last of it."""
NAME, SECONDS = "model.language_model.layers.10.self_attn.q_proj." * 2, 0.1
"""What patterns are tried with when they are set, and how long they may take: usual ones take microseconds."""


def ending(targets: list[str]) -> list[str]:
    """Return targets; raise the error of their setting, at its place, for one that is no pattern or has no end."""
    for target in targets:
        try:
            re.compile(target)
            if len(target) > MAX_PATTERN or "){" in target:  # counts within counts take all the memory
                raise TimeoutError
            regex.fullmatch(translated(target), NAME, timeout=SECONDS)
        except (TimeoutError, RecursionError):
            raise PydanticCustomError("tuner.endless", "a pattern without end", {"given": target[:80]}) from None
        except (re.error, regex.error, OverflowError) as error:
            told = {"given": target[:80], "what": str(error)}
            raise PydanticCustomError("tuner.pattern", "no pattern", told) from None
    return targets


def numbers(layers: str) -> set[int]:
    """Return the numbers that a text such as 0-3,6 means; none for one that means nothing."""
    found = [RANGE.fullmatch(part.strip()) for part in layers.split(",")]
    parts = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in found if part]
    return set().union(*parts) if len(parts) == len(found) and all(parts) else set()


def within(layers: str, count: int) -> set[int] | None:
    """Return the numbers of those of `count` layers that get an adapter, None for all; raise InputError where one is
    missing."""
    wanted = numbers(layers) if layers else None
    if wanted and max(wanted) >= count:
        raise InputError("lora.no_layer", "tuner.lora.layers", given=max(wanted), last=count - 1)
    return wanted


def check_layers(shapes: Shapes, targets: Sequence[str], layers: str) -> None:
    """Raise InputError for layers that are missing, or in which a target means nothing that it means elsewhere."""
    wanted = within(layers, len(shapes.blocks))
    for target in targets if wanted else ():
        if targeted(shapes, [target]) and not targeted(shapes, [target], wanted):
            raise elsewhere(target, len(shapes.blocks))


def elsewhere(target: str, count: int) -> InputError:
    """Return the error for a target that means nothing in the layers that are given, of `count`."""
    return InputError("lora.elsewhere", "tuner.lora.layers", module=target, last=count - 1)


def alike(model_type: str) -> bool:
    """Return whether files of this type are known to have the names and matrices of the model in memory."""
    return bool(of_type(model_type)) and model_type not in RENAMED


def check_names(shapes: Shapes, given: Sequence[str], place: str, *, tied: bool) -> None:
    """Raise InputError at `place` for a name that no module has that can learn whole.

    tied: whether a head that shares its weight may be named.
    """
    modules = shapes.modules if shapes.head or not tied else shapes.modules.union(HEADS)
    for one in given:
        fitting = [name for name in modules if any(f".{alias}".endswith(f".{one}") for alias in called(name))]
        missing = {name: [part for part in sorted(apart(name, shapes.trunk)) if part not in one] for name in fitting}
        meant = [name for name in fitting if not missing[name]]
        if fitting and not meant:
            raise InputError("tuner.apart", place, module=one, part=missing[min(fitting)][0])
        if all(name == shapes.stack for name in meant):
            code = "tuner.not_whole" if meant or one in HEADS else "tuner.no_module"
            known = [name for name in modules if not f"{shapes.stack}.".startswith(f"{name}.")]
            lasts = {
                last for name in known for last in [name.rpartition(".")[2]] if apart(name, shapes.trunk) <= {last}
            }
            raise InputError(code, place, module=one, known=shown(lasts, one))


def check_targets(shapes: Shapes, targets: Sequence[str], place: str, *, lora: bool, whole: Sequence[str] = ()) -> None:
    """Raise InputError at `place` for a target that means no layer that can take an adapter.

    lora: for LoRA, as for `core.models.linear.chosen`. whole: names of modules that learn whole, in which not all lie.
    """
    takers, found = _takers(shapes, tables=lora), set[str]()
    for target in targets:
        fitting = {name for name, parts in takers.items() if means(target, name, parts)}
        if not fitting:
            raise none_meant(shapes.type, target, takers, shapes.modules, place, lora=lora)
        if lora and all(taken_for_experts(shapes.type, name) for name in fitting):
            raise of_experts(shapes.type, target, place)
        found |= fitting
    if whole and all(held(name, whole, shapes.trunk) for name in found):
        raise InputError("lora.all_whole", "tuner.lora.extra", module=", ".join(whole))


def none_meant(
    model_type: str, target: str, takers: Mapping[str, Set[str]], modules: Iterable[str], place: str, *, lora: bool
) -> InputError:
    """Return the error for a target that means no layer that can take an adapter.

    takers: name -> parts that a target must hold to mean it, of those that can. modules: the names of all.
    """
    if lora and taken_for_experts(model_type, target.removesuffix("$")):
        return of_experts(model_type, target, place)
    missing = next((part for name, parts in takers.items() if fits(name, target)
                    for part in sorted(parts) if part not in target), "")  # fmt: skip
    if missing:
        return InputError("tuner.apart", place, module=target, part=missing)
    there = any(fits(name, target) for name in modules)
    known = [name.rpartition(".")[2] for name, parts in takers.items() if means(name.rpartition(".")[2], name, parts)]
    known = [last for last in known if not (lora and taken_for_experts(model_type, last))]
    code = "tuner.no_adapter" if there else "tuner.no_module"
    return InputError(code, place, module=target, known=shown(known, target))


def of_experts(model_type: str, target: str, place: str) -> InputError:
    """Return the error for a target that peft would take for the experts."""
    return InputError("lora.of_experts", place, module=target, type=model_type)


def _takers(shapes: Shapes, *, tables: bool) -> dict[str, Set[str]]:
    """Return the layers that may take an adapter, as far as names tell: name -> parts that a target must hold."""
    found: dict[str, Set[str]] = {} if shapes.head else {head: {head} for head in HEADS}
    for name, shape in shapes.tensors.items():
        module = name.removesuffix(".weight")
        if len(shape) != 2 or module == name or FUSED.search(module) or CHOOSER.search(module):
            continue
        table = name == shapes.table or bool(LOOKED_UP.search(module))
        if tables or name != shapes.table:
            own = {module.rpartition(".")[2]} if table or name == shapes.head else set[str]()
            found[module] = apart(module, shapes.trunk) | own
    return found


def shown(names: Iterable[str], near: str) -> str:
    """Return names of modules for a message, those first that look like what was given."""
    known = sorted(name for name in set(names) if not name.isdigit())
    alike = get_close_matches(near.removesuffix("$").rpartition(".")[2], known)
    return ", ".join([*alike, *(name for name in known if name not in alike)][:20])


@lru_cache(maxsize=1 << 15)
def fits(name: str, target: str) -> bool:
    """Return whether a target fits the name of a layer, as files or the model in memory call it."""
    names = called(name)
    try:
        ends = any(f".{one}".endswith(f".{target}") for one in names)
        return ends or any(regex.fullmatch(translated(target), one, timeout=SECONDS) for one in names)
    except TimeoutError:
        raise InputError("tuner.endless", "tuner", given=target[:80]) from None
    except regex.error:
        return False  # in an adapter, which peft reads


@lru_cache(maxsize=1 << 15)
def apart(name: str, trunk: str) -> frozenset[str]:
    """Return the parts of a name that a target must hold to mean that layer.

    trunk: name of the module that holds the text blocks; what branches off before it is none of the text part.
    """
    parts, path = name.split("."), trunk.split(".") if trunk else []
    common = next((i for i, pair in enumerate(zip(parts, path, strict=False)) if pair[0] != pair[1]), len(path))
    branch = parts[common : common + 1] if common < len(path) else []
    return frozenset(branch).union(part for part in parts if APART.search(part))


def held(name: str, modules: Sequence[str], trunk: str) -> bool:
    """Return whether a weight or a layer belongs to one of the modules, with a path as in memory or as in the files.

    Modules beside the text part, as those that see, must be named by a path into these.
    """
    return any(
        all(part in module for part in apart(f"{name}.".removesuffix(rest)[:-1], trunk))
        for module in modules
        for one in (called(name) if "." in module else [name])
        if f".{module}." in f".{one}."
        for rest in [f".{one}.".partition(f".{module}.")[2]]
    )


def means(target: str, name: str, parts: Set[str]) -> bool:
    """Return whether a target means a layer, of whose name it must hold these parts."""
    return not parts if target == "all-linear" else all(part in target for part in parts) and fits(name, target)


def targeted(
    shapes: Shapes, targets: Sequence[str], layers: Container[int] | None = None, whole: Sequence[str] = ()
) -> list[Linear]:
    """Return the linear layers that targets mean.

    layers: numbers of the blocks that count; None for all, and for what lies outside of them. whole: names of modules
    that learn whole, within which nothing else does.
    """
    trunk = shapes.trunk
    chosen = (block for number, block in enumerate(shapes.linears) if layers is None or number in layers)
    linears = [linear for block in chosen for linear in block if not linear.of_expert]
    return [
        linear
        for linear in [*linears, *(_outside(shapes, trunk) if layers is None else [])]
        if not FUSED.search(linear.name) and not held(linear.name, whole, trunk)
        if any(means(target, linear.name, apart(linear.name, trunk)) for target in targets)
    ]


def _outside(shapes: Shapes, trunk: str) -> list[Linear]:
    """Return the layers outside of the text blocks, as of what sees and hears: no tables."""
    found = {name.removesuffix(".weight"): shape for name, shape in shapes.tensors.items()
             if len(shape) == 2 and name.endswith(".weight") and name not in (shapes.head, shapes.table)}  # fmt: skip
    beside = {name: shape for name, shape in found.items() if trunk and not name.startswith(f"{shapes.stack}.")}
    return [Linear(name, *shape) for name, shape in beside.items() if not TABLE.search(name)]
