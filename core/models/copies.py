"""Copies of the modules of a model, which are to go by the settings of that model and not by copies of these, too.

How attention is computed stands in the config that every layer holds, and changes after the copies are made.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedConfig


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
