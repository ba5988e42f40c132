"""BAdam: Adam on one block of the model at a time (Luo et al., arXiv 2404.02827)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from core.models.shapes import BLOCK, Shapes
from core.optimizers import AT_ONCE, OWN, Groups, Learning, Moments, Optimizer, Want, largest, numbers, of_blocks
from core.schema import knob

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

STATES = 3
"""Numbers in fp32 that are kept for one that learns in 16 bits: two moments, and itself; the last not in fp32."""


class BAdam(Moments, Optimizer):
    """BAdam
    Full tuning with AdamW on one block at a time: memory for gradients and state of that block alone. With pure_bf16
    it takes little more than the weights."""

    kind: Literal["badam"] = "badam"
    mode: Literal["layer", "ratio"] = knob("layer")
    """Mode
    layer moves one block at a time; ratio a share of every matrix, which costs the time of a full backward pass."""
    switch_every: int = knob(50, ge=1, le=100_000)
    """Switch every
    Steps after which the next part learns. Typical: 20 to 200, so that every part has its turn more than once."""
    order: Literal["descending", "ascending", "random", "fixed"] = knob("descending", expert=True)
    """Order
    Of the blocks in layer mode: from the last to the first, the other way, or shuffled in each round; fixed stays at
    the last."""
    ratio: float = knob(0.05, gt=0, le=1, expert=True)
    """Share
    Of each weight that learns in ratio mode. Typical: 0.01 to 0.1."""
    pick: Literal["adjacent", "scatter"] = knob("adjacent", expert=True)
    """Pick
    In ratio mode: numbers beside each other, which costs nothing, or scattered ones."""
    ends: bool = knob(False, expert=True)
    """Embeddings and head, too
    What lies outside the blocks takes its turn as one more block; else it stays as it is."""

    @property
    def wants(self) -> frozenset[Want]:
        outside: frozenset[Want] = frozenset() if self.ends else frozenset({"outside"})
        alone: frozenset[Want] = frozenset({"alone"})
        return OWN | outside | (AT_ONCE if self.mode == "ratio" else alone)

    def build(self, model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> torch.optim.Optimizer:
        from core.optimizers.steps.badam import ByBlock, ByShare, parted

        parts = parted(model, ends=self.ends)
        if self.mode == "layer":
            return ByBlock(groups, parts, every=self.switch_every, order=self.order, seed=given.seed, **self.adam)
        return ByShare(groups, parts, every=self.switch_every, ratio=self.ratio, scatter=self.pick == "scatter",
                       seed=given.seed, **self.adam)  # fmt: skip

    def turns(self, learns: Learning, shapes: Shapes) -> Sequence[Learning]:
        if self.mode != "layer":
            return [learns]
        parts = self._parts(learns, shapes)
        return [parts[-1]] if self.order == "fixed" else [parts[0], parts[-1]]  # the way back ends at the first

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        kept = STATES if width < 4 else STATES - 1
        if self.mode == "layer":
            return 4 * kept * max(map(numbers, self._parts(learns, shapes)))
        share = self._share(learns, shapes)
        return 4 * kept * share + (8 * share if self.pick == "scatter" else 0)

    def gradient_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        parts = self._parts(learns, shapes)
        if self.mode == "layer":
            return width * max(map(numbers, parts))
        return width * max(map(largest, parts)) + 4 * self._share(learns, shapes)

    def _parts(self, learns: Learning, shapes: Shapes) -> list[Learning]:
        """Return what takes its turn: the blocks, and the rest if it learns."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, shape in of_blocks(learns, shapes).items():
            match = BLOCK.match(name)
            assert match
            found.setdefault(match[2], {})[name] = shape
        inside: list[Learning] = [*found.values()]
        rest = {name: shape for name, shape in learns.items() if not any(name in part for part in inside)}
        return [*inside, rest] if self.ends else inside or [{}]

    def _share(self, learns: Learning, shapes: Shapes) -> int:
        parts = self._parts(learns, shapes)
        return sum(share(math.prod(shape), self.ratio) for part in parts for shape in part.values())


def share(size: int, ratio: float) -> int:
    """Return how many of the numbers of a weight learn at a time."""
    return math.ceil(size * ratio)
