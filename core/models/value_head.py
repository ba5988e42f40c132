"""One number for each token of a text, read off the last hidden states: what reward models and critics learn.

Kept as value_head.safetensors beside an adapter or a model; no other format is ever opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from core.errors import InputError
from core.files import aside
from core.models.headers import header
from core.models.inspect import HEAD, head_file

NAME = HEAD
"""Of the part of a model that it is while it learns."""
FILE = f"{NAME}.safetensors"
FLOATS = ("F32", "BF16", "F16")


class ValueHead(torch.nn.Linear):
    """Linear(hidden, 1) in fp32, whatever the model computes in: near each other, values would be rounded together."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden, 1, dtype=torch.float32)
        # as in Stiennon et al., arXiv 2009.01325: values begin near 0
        torch.nn.init.normal_(self.weight, std=(hidden + 1) ** -0.5)
        torch.nn.init.zeros_(self.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return values_B_T; input: the last hidden states (B, T, D)."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).squeeze(-1)


def attach(model: PreTrainedModel | PeftModel, kept: Path, begun: Iterable[tuple[Path, str]]) -> ValueHead:
    """Lay a head beside a model, as a part of it that learns; return it.

    kept: a folder where the head is left as it begins; one that is there already is taken. Else it is that of the
    first of the folders in `begun`, each with the place of its setting, that has one, or a new one.
    """
    folders = [(kept, "")] if kept.is_dir() else [(folder, at) for folder, at in begun if any(folder.glob(f"{NAME}.*"))]
    head = load(model, *folders[0]) if folders else ValueHead(width(model)).to(model.device)
    if not kept.is_dir():
        with aside(kept) as writing:
            save(head, writing)
    model.add_module(NAME, head)
    return head


def attached(model: Any) -> ValueHead | None:
    """Return the head that was laid beside a model."""
    head = dict(extract_model_from_parallel(model).named_children()).get(NAME)
    return head if isinstance(head, ValueHead) else None


def detach(model: PreTrainedModel | PeftModel) -> ValueHead:
    """Take the head from a model again; return it."""
    head = attached(model)
    assert head is not None
    delattr(model, NAME)
    return head


def width(model: PreTrainedModel | PeftModel) -> int:
    """Return the size of the last hidden states of a causal language model."""
    return _output(model).weight.shape[1]


@contextmanager
def reading(model: Any, head: ValueHead, *, alone: bool = False) -> Iterator[None]:
    """Let a model give a dict, with the `value` (B, T) that the head reads off what its logits are made of.

    That happens within its forward, so that what joins several processes sees the head learn. alone: of the rest
    the loss of routers alone is given, and hardly a logit is made.
    """
    inner, found = extract_model_from_parallel(model), []

    def look(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        found.append(given[0])
        return (given[0][:, -1:], *given[1:]) if alone else None

    def read(_: Any, __: Any, out: dict[str, Any]) -> dict[str, Any]:
        given = {"aux_loss": out.get("aux_loss")} if alone else out
        return {**given, "value": head(found.pop())}

    hooks = [_output(inner).register_forward_pre_hook(look), inner.register_forward_hook(read)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def save(head: ValueHead, folder: Path) -> None:
    """Write the head into a folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def load(model: PreTrainedModel | PeftModel, folder: Path, place: str = "model.path") -> ValueHead:
    """Return the head of a folder on the device of the model.

    Raises InputError at `place` for one that is missing, of another format, shape or dtype, or not finite.
    """
    file = head_file(folder, place)
    head = ValueHead(width(model))
    stored = {name: (entry.dtype in FLOATS, entry.shape) for name, entry in header(file, place).items()}
    wanted = {name: (True, tuple(tensor.shape)) for name, tensor in head.state_dict().items()}
    if stored != wanted:
        raise InputError("value_head.unfit", place, folder=str(folder), width=width(model))
    tensors = load_file(file)
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError("value_head.not_finite", place, folder=str(folder))
    head.load_state_dict(tensors)
    return head.to(model.device)


def _output(model: PreTrainedModel | PeftModel) -> Any:
    """Return the layer that makes logits of the last hidden states."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.get_output_embeddings()
