"""Mixtures of experts: what holds them, what sharding must leave whole, the loss that keeps all of them busy."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from core.errors import InputError
from core.models.shapes import APART

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


def experts(model: torch.nn.Module) -> list[str]:
    """Return the names of the modules that hold experts; transformers 5 stacks all experts of a layer in one module."""
    return [name for name, module in model.named_modules() if type(module).__name__.endswith("Experts")]


def parameters(model: PreTrainedModel) -> list[str]:
    """Return the stacked weights of experts, (experts, out, in) or (experts, in, out), as names that an adapter takes.

    Those for images, as Ernie-VL has them, are left alone. Names are cut to two parts, experts.down_proj, where these
    mean the same weights in every layer.
    """
    held = {f"{name}.": None for name in experts(model)}
    found = [
        name
        for name, weight in model.named_parameters()
        if weight.ndim == 3 and f"{name.rpartition('.')[0]}." in held and not APART.search(name)
    ]  # fmt: skip
    lasts = sorted({".".join(name.split(".")[-2:]) for name in found})
    meant = [name for name, _ in model.named_parameters() if name.endswith(tuple(f".{last}" for last in lasts))]
    return lasts if sorted(meant) == sorted(found) else found


def stacked(model: PreTrainedModel) -> list[str]:
    """Return the stacked weights of the experts that get an adapter; raise InputError where there are none."""
    if not (found := parameters(model)):
        code = "lora.experts_in_one" if experts(model) else "lora.no_experts"
        raise InputError(code, "tuner.lora.experts", model=model.config.model_type)
    return found


def leaves(model: torch.nn.Module) -> list[type[torch.nn.Module]]:
    """Return the classes that deepspeed.utils.set_z3_leaf_modules must be told: the blocks around router and experts.

    ZeRO-3 gathers weights module by module, in an order that all processes share; which experts work differs between
    them. So the whole block is gathered at once.
    """
    modules = dict(model.named_modules())
    found: dict[type[torch.nn.Module], None] = {}
    for name in experts(model):
        block = name.replace(".base_layer", "").rpartition(".")[0]  # not the wrapper of an adapter
        found[type(modules[block])] = None
    return list(found)


def balance(model: PreTrainedModel | PeftModel) -> None:
    """Have the model give, in training alone, the loss that keeps routers from always choosing the same experts.

    The loss is that of Switch Transformers (arXiv 2101.03961, eq. 4 to 6), computed by transformers' models themselves.
    Raises InputError for a model that has none.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    text = base.config.get_text_config()
    known = any(name in vars(base) for name in COEFFICIENTS) or COEFFICIENTS[0] in text.to_dict()
    if "output_router_logits" not in inspect.signature(type(base).forward).parameters or not known:
        raise InputError("moe.no_router", "training.router_aux_loss", model=base.config.model_type)
    model.register_forward_pre_hook(_ask_routers, with_kwargs=True)


def _ask_routers(model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"output_router_logits": model.training}
