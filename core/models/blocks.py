"""The repeated layers of a model, and more of them: blocks that change nothing at first are put between its own.

Block expansion as in LLaMA Pro (Wu et al., arXiv 2401.02415).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from core.errors import InputError
from core.models import damage
from core.models.copies import share
from core.models.loading import UNUSABLE
from core.models.longer import NEVER, unfit
from core.models.shapes import LAST, fresh, order
from core.models.vocabulary import some_tokens

INDEX = ("layer_idx", "layer_id", "layer_number", "layer_index", "block_idx")
"""What modules call the number of their block."""
PROBE = 8


def blocks(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """Return (name, blocks) of the part that writes text; raise InputError for a model that has none."""
    decoder: Any = model.get_decoder()
    names = [name for name, module in model.named_modules() if module is decoder]
    for name, module in decoder.named_modules(prefix=names[0] if names else ""):
        if isinstance(module, torch.nn.ModuleList):
            return name, module
    raise InputError("blocks.none", "tuner", model=model.config.model_type)


def numbered(model: PreTrainedModel, modules: Sequence[str]) -> dict[str, int]:
    """Return the number of its block for each module that lies in one, by name."""
    inside = re.compile(re.escape(blocks(model)[0]) + r"\.(\d+)\.")
    return {module: int(found[1]) for module in modules if (found := inside.match(module))}


def expand(model: PreTrainedModel, count: int) -> set[str]:
    """Put so many new blocks between those of the model, evenly, and return the names of their parameters.

    Each is a copy of the block before it with zeros where it would add something, so the model answers as before.
    Raises InputError for a model where that does not hold, or that could not be loaded again.
    """
    ids_1_T = some_tokens(model, 0, PROBE)
    wanted = _logits(model, ids_1_T)
    names = lengthen(model, count)
    try:
        alike = torch.equal(_logits(model, ids_1_T), wanted)
    except (LookupError, *UNUSABLE):
        alike = False
    if not alike:
        raise unfit(model.config.model_type)
    return names


def lengthen(model: PreTrainedModel, count: int) -> set[str]:
    """Do so, whatever the model answers then: it may have no weights yet."""
    name, stack = blocks(model)
    text: Any = model.config.get_text_config()
    before = len(stack)
    if count > before:
        raise InputError("expand.blocks", "tuner.expand.blocks", given=count, count=before)
    if model.config.model_type in NEVER:
        raise unfit(model.config.model_type)
    places = order(before, count)
    for place in fresh(places):
        stack.insert(place, _passing(stack[place - 1]))
    for key, value in _lengthened(text, places).items():
        setattr(text, key, value)
    try:
        alike = _rebuilt(model, name)
    except (LookupError, *UNUSABLE):  # as models raise whose config tells of each block in a way of its own
        alike = False
    if not alike:
        raise unfit(model.config.model_type)
    return {f"{name}.{place}.{own}" for place in fresh(places) for own, _ in stack[place].named_parameters()}


def _passing(block: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a block that hands on what it is given."""
    made = copy.deepcopy(block)
    share(made, block)
    for name, parameter in made.named_parameters():
        if LAST.search(re.sub(r"\.(weight|bias)$", "", name)):
            parameter.data.zero_()
    return made


def _lengthened(text: Any, places: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a config that count its blocks or say something of each."""
    before = text.num_hidden_layers
    lists = {key: value for key, value in text.to_dict().items() if isinstance(value, list) and len(value) == before}
    lists = {key: value for key, value in lists.items() if "layer" in key or key.endswith("_types")}
    return {"num_hidden_layers": len(places)} | {
        key: [value[index] for index in places] for key, value in lists.items()
    }


def _rebuilt(model: PreTrainedModel, name: str) -> bool:
    """Number the blocks anew; return whether transformers builds just such blocks from the config of the model."""
    with torch.device("meta"):
        other = cast(Any, type(model))._from_config(copy.deepcopy(model.config))
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (model, other)]
    if shapes[0] != shapes[1]:
        return False
    pairs = zip(model.get_submodule(name).named_modules(), other.get_submodule(name).named_modules(), strict=True)
    for (_, ours), (_, theirs) in pairs:
        wanted = dict(_plain(theirs))
        for key in wanted.keys() & set(INDEX):
            setattr(ours, key, wanted[key])
        if dict(_plain(ours)) != wanted:
            return False
    return True


def _plain(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the settings that a module keeps: numbers, names and switches."""
    for key, value in vars(module).items():
        if key != "training" and not key.startswith("_") and isinstance(value, int | float | str | None):
            yield key, value


@torch.no_grad()
def _logits(model: PreTrainedModel, ids_1_T: torch.Tensor) -> torch.Tensor:
    training = model.training
    logits = model.eval()(input_ids=ids_1_T, use_cache=False).logits
    model.train(training)
    damage.check(model, logits)
    return logits
