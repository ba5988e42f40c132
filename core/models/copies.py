"""Copies of the modules of a model, which are to go by the settings of that model and not by copies of these, too.

How attention is computed stands in the config that every layer holds, and changes after the copies are made. And layers
that share their weights, as some of Zamba's do: they are taught as one, or what they learn could not be put into those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedConfig, PreTrainedModel


def share(made: torch.nn.Module, original: torch.nn.Module) -> None:
    """Give a copy of a module the very configs of the original."""
    for name, module in original.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, PreTrainedConfig):
                setattr(made.get_submodule(name), key, value)


def share_all(model: PeftModel) -> PeftModel:
    """Do so for all copies of modules that adapters teach whole. Return the model."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for made in module.modules_to_save.values():
                share(made, module.original_module)
    return model


def bind(model: PeftModel) -> PeftModel:
    """Give layers that share their weights one adapter. Return the model."""
    for first, other in _sharing(model):
        for name in first.adapter_layer_names:
            setattr(other, name, first.get_submodule(name))
    return model


def merged(model: PeftModel) -> PreTrainedModel:
    """Return the model with its one adapter in its weights, once in those that layers share."""
    for _, other in _sharing(model):
        for name in other.adapter_layer_names:
            setattr(other, name, type(other.get_submodule(name))())
    return model.merge_and_unload()


def part(model: torch.nn.Module) -> None:
    """Give modules that share their weights some of their own."""
    seen: set[int] = set()
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) in seen:
                module.register_parameter(name, torch.nn.Parameter(weight.detach().clone(), weight.requires_grad))
            seen.add(id(weight))


def _sharing(model: PeftModel) -> Iterator[tuple[Any, Any]]:
    """Yield the first of the layers that share their weights, and each of the others; embedding and head are none."""
    first: dict[tuple[type, int], Any] = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer):
            weight = dict(module.get_base_layer().named_parameters(recurse=False)).get("weight")
            key = type(module), id(weight)
            if weight is not None and first.setdefault(key, module) is not module:
                yield first[key], module
