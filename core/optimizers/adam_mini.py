"""Adam-mini: one learning rate for weights that belong together (Zhang et al., arXiv 2406.16793)."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

from core.models.shapes import Shapes
from core.optimizers import OWN, Groups, Learning, Moments, Optimizer, Want, numbers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

ASKING = re.compile(r"\.(q_proj|wq|query)\.weight$")
ASKED = re.compile(r"\.(k_proj|wk|key)\.weight$")


class AdamMini(Moments, Optimizer):
    """Adam-mini
    AdamW with one second moment for each head, each row of a matrix: half the memory, nearly the same steps. For full
    tuning of models with queries and keys of their own."""

    kind: Literal["adam_mini"] = "adam_mini"

    @property
    def wants(self) -> frozenset[Want]:
        return OWN

    def build(self, model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> torch.optim.Optimizer:
        from core.errors import InputError
        from core.optimizers.steps.adam_mini import AdamMini as Steps

        heads = heads_of(model.config.get_text_config().to_dict())
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not heads or not any(ASKING.search(name) for name, _ in model.named_parameters()):
            raise InputError("adam_mini.heads", "optimizer", model=model.config.model_type)
        counts = {weight: parts(name, tuple(weight.shape), heads) for name, weight in named.items()}
        return Steps(groups, counts, **self.adam)

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        heads = heads_of(shapes.config) or (1, 1)
        return width * (numbers(learns) + sum(parts(name, shape, heads) for name, shape in learns.items()))


def heads_of(config: object) -> tuple[int, int] | None:
    """Return how many heads a model has for queries and for keys; None where its config doesn't tell."""
    assert isinstance(config, dict)
    queries = config.get("num_attention_heads")
    keys = config.get("num_key_value_heads") or queries
    return (queries, keys) if isinstance(queries, int) and isinstance(keys, int) else None


def parts(name: str, shape: tuple[int, ...], heads: tuple[int, int]) -> int:
    """Return into how many parts a weight falls, each with one second moment.

    Heads of queries and keys, rows of other matrices, each number of a bias, a norm as a whole.
    """
    if len(shape) < 2:
        return math.prod(shape) if name.endswith("bias") else 1
    for pattern, count in ((ASKING, heads[0]), (ASKED, heads[1])):
        if pattern.search(name) and shape[0] % count == 0:
            return count
    return math.prod(shape[:-1])
