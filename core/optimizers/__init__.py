"""How weights move: one file, one optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.models.shapes import BLOCK, EXPERT, Shapes
from core.schema import Spec, knob

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

Learning = Mapping[str, tuple[int, ...]]
"""Name -> shape of what learns."""
Groups = Sequence[dict[str, Any]]
"""Weights that are moved alike: "params", and the "lr" and "weight_decay" of them."""
Want = Literal["own_weights", "alone", "no_clip", "one_batch", "no_fp16", "constant", "matrices", "outside"]
"""What an optimizer asks of the other settings; core/crossings.py says what each means."""
OWN: frozenset[Want] = frozenset({"own_weights"})
AT_ONCE: frozenset[Want] = frozenset({"alone", "no_clip", "no_fp16"})
"""What those ask that use a gradient and throw it away before the others are there."""
BY_LAYER: frozenset[Want] = frozenset({"alone", "no_clip", "no_fp16", "one_batch"})
"""What those ask that move a weight then, too."""


class Optimizer(Spec):
    """An optimizer and its settings; `kind` names it."""

    kind: str
    bears: ClassVar[float] = 1.0
    """How many times the learning rate of AdamW suits it."""
    learning_rate: float = knob(2e-4, gt=0, le=1)
    """Learning rate
    Size of a step. Lower it when the loss jumps or the model forgets; raise it when the loss falls too slowly.
    Typical: 1e-4 to 5e-4 for LoRA, 1e-5 to 5e-5 for full tuning; tiny models bear ten times more."""
    weight_decay: float = knob(0.0, ge=0, le=1, expert=True)
    """Weight decay
    Pull of the weights towards zero. Raise it a little when a full tuning overfits. Typical: 0 to 0.1."""

    @property
    def wants(self) -> frozenset[Want]:
        """What it asks of the other settings."""
        return frozenset()

    def arguments(self) -> dict[str, Any]:
        """Return the fields of transformers' TrainingArguments that choose and set this optimizer."""
        return {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}

    def check(self, device: str) -> None:
        """Raise InputError for what this machine lacks; device: "cpu", "cuda" or "mps"."""

    def build(self, model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> torch.optim.Optimizer | None:
        """Return the optimizer of these groups; None where transformers makes it from `arguments`.

        Raises InputError for a model that it doesn't suit.
        """
        return None

    def turns(self, learns: Learning, shapes: Shapes) -> Sequence[Learning]:
        """Return what learns at a time; where parts take turns, those for which autograd keeps the most."""
        return [learns]

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        """Return the bytes that it keeps for what learns; width: the bytes of one number of that."""
        raise NotImplementedError

    def gradient_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        """Return the bytes of the gradients that are there at once."""
        return width * numbers(learns)


class Moments(Spec):
    """The settings of those that keep running means of the gradient and of its square, as Adam does."""

    beta1: float = knob(0.9, ge=0, lt=1, expert=True)
    """Beta 1
    Memory of the mean of the gradient. Rarely changed. Typical: 0.9."""
    beta2: float = knob(0.999, ge=0, lt=1, expert=True)
    """Beta 2
    Memory of the square of the gradient. Lower it when the loss spikes in long runs. Typical: 0.95 to 0.999."""
    epsilon: float = knob(1e-8, gt=0, le=1e-2, expert=True)
    """Epsilon
    Guard against division by zero. Rarely changed. Typical: 1e-8."""

    @property
    def adam(self) -> dict[str, Any]:
        """Its settings as the classes of torch take them."""
        return {"betas": (self.beta1, self.beta2), "eps": self.epsilon}


def numbers(learns: Learning) -> int:
    """Return how many numbers learn."""
    return sum(map(math.prod, learns.values()))


def of_blocks(learns: Learning, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return what learns inside the text blocks: weights of theirs, and adapters on them."""
    return {name: shape for name, shape in learns.items() if (found := BLOCK.match(name)) and found[1] == shapes.stack}


def matrices(learns: Learning, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the matrices among them. Experts are none: in memory they are stacked."""
    return {
        name: shape for name, shape in of_blocks(learns, shapes).items()
        if len(shape) == 2 and (".lora_" in name or not EXPERT.search(name))
    }  # fmt: skip


def largest(learns: Learning) -> int:
    """Return the numbers of the largest weight that learns."""
    return max((math.prod(shape) for shape in learns.values()), default=0)
