"""What autograd keeps of a batch, counted matrix by matrix from shapes alone. Cold.

Every linear layer keeps what it gives, one that learns what it takes, attention and the activation of an MLP what they
give (saved-tensor hooks count the same in the tests).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from core.models.scans import scan
from core.models.shapes import NUMBERS, Linear, Shapes
from core.models.tables import head

if TYPE_CHECKING:
    from core.config import Run

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
DROPPED = ("resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "resid_dropout")
"""Keys of config.json: what is dropped by chance of what attention and MLP give, and below of the scores."""
DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "attn_dropout")
KEPT_MORE = {"gelu_new": 3, "gelu_fast": 6, "gelu_10": 1, "quick_gelu": 1, "relu": -1}
"""How many more numbers an activation keeps than its input: some are put together from many steps."""
EXPERTS = re.compile(r"\.experts\.\d+\.")
SCORES_BACK = 3
"""Gradients of written-out scores at once on the way back: of what is dropped, of probabilities, of scores."""
QK_NORM = re.compile(r"\.[qk](_layer)?_?norm\.")


def activations(
    run: Run, shapes: Shapes, learns: Mapping[str, tuple[int, ...]], device: str, *, half: bool, packed: bool
) -> tuple[int, int]:
    """Return (bytes that autograd keeps of a batch, bytes that layers give and glibc may hold).

    The second are those that it would keep if it threw nothing away to save room; scores of attention are left out, and
    half of scans: all have one size, so that one fits where another was. Of packed layers, what the tuner keeps beside
    them is left out, too: it is the weights unpacked for a moment that leave room that nothing fits in.

    Counted from the first block on in which something learns.
    """
    learning = {EXPERTS.sub(".experts.", name) for name in learns}
    modules = {name.rpartition(".")[0] for name in learning} | learning
    count = _Count(run, shapes, modules, device, half)
    reached = [any({name, name.rpartition(".")[0]} & modules for name in [*block, *(linear.name for linear in linears)])
               for block, linears in zip(shapes.blocks, shapes.linears, strict=True)]  # fmt: skip
    begins = (
        0 if shapes.table.removesuffix(".weight") in modules else reached.index(True) if any(reached) else len(reached)
    )
    tokens = run.stage.together(run.training.batch_size) * run.data.cutoff
    blocks = [count.block(block, linears, tokens)
              for block, linears in zip(shapes.blocks[begins:], shapes.linears[begins:], strict=True)]  # fmt: skip
    width = shapes.embedding[1]
    ends = 2 * 4 * width * tokens  # the last norm and the head
    if (end := head(shapes)).name in {name.rpartition(".")[0] for name in learns if name not in shapes.tensors}:
        ends += count.beside([end], tokens)
    whole = int(sum(blocks) + ends)
    scans = [count.scan(block) for block in shapes.blocks[begins:]]
    back = SCORES_BACK * count.matrix + max((back for _, back in scans), default=0)
    one = max(blocks, default=0) + ends + back * tokens
    given = int(whole - (len(blocks) * count.scores + sum(kept for kept, _ in scans) / 2) * tokens)
    given -= packed * sum(count.beside(linears, tokens) for linears in shapes.linears[begins:])
    if run.training.offload_activations and device != "cpu":  # they wait elsewhere, but for what is computed just now
        return int(one), given
    if run.training.gradient_checkpointing:
        return int(len(blocks) * count.stream * width * tokens + one), given
    return whole, given


class _Count:
    """Counts what a block keeps."""

    def __init__(self, run: Run, shapes: Shapes, modules: set[str], device: str, half: bool) -> None:
        self.tuner, self.modules, self.half = run.tuner, modules, half
        self.width = 2 if half else 4
        self.stream = 2 if half and shapes.table not in modules else 4
        self.mask = (1 if device == "cuda" else 4) if run.tuner.masks else 0
        self.scan = partial(
            scan, config=shapes.config, cutoff=run.data.cutoff, device=device, learns=modules, half=half
        )
        self.model_width = shapes.embedding[1]
        named = next((shapes.config[key] for key in ACTIVATIONS if key in shapes.config), "")
        self.more = KEPT_MORE.get(str(named), 0)
        heads = next((shapes.config[key] for key in NUMBERS["heads"] if isinstance(shapes.config.get(key), int)), 0)
        by_chance = {} if run.stage.compares else shapes.config  # which stages that compare leave out
        self.dropped = 2 * self.width * any(by_chance.get(key) for key in DROPPED) * self.model_width
        drops, score, beside = any(by_chance.get(key) for key in DROPOUTS), 0, 0
        if run.model.attention == "eager":  # the softmax in fp32, and in 16 bits; what is dropped of it, and the rest
            score = 4 + 2 * self.width if drops else 4 + 2 * half
        elif drops and device == "cpu":  # which has no kernel for it: the same in fp32
            score, beside = 12, 4 * self.model_width
        self.scores = heads * run.data.cutoff * score + beside
        """Bytes for a token; and of one gradient of them."""
        self.matrix = heads * run.data.cutoff * (4 if beside else self.width) * bool(score)

    def block(self, block: Mapping[str, tuple[int, ...]], linears: Sequence[Linear], tokens: int) -> float:
        """Return the bytes that a block keeps for so many tokens."""
        given = sum(linear.rows * linear.active * (4 if linear.last else self.width) for linear in linears)
        made = sum(linear.columns * linear.active * self.width * self._made(linear, linears)
                   for linear in linears if linear.last)  # fmt: skip
        taken: dict[object, float] = {}
        for linear in linears:
            if linear.name in self.modules:
                own = self.half or self.mask or linear.last
                key = linear.name if own else (linear.name.rpartition(".")[0], linear.columns)
                taken[key] = linear.columns * linear.active * (self.width + self.mask)
        a_token = given + made + sum(taken.values()) + self._norms(block, linears)
        a_token += self.scores + self.dropped + self.scan(block)[0]
        return a_token * tokens + self.beside(linears, tokens)

    def beside(self, linears: Sequence[Linear], tokens: int) -> int:
        """Return the bytes that the tuner keeps beside these layers."""
        found = [self.tuner.beside(linear) for linear in linears if linear.name in self.modules]
        return self.width * sum(for_token * tokens + for_all for for_token, for_all in found)

    def _made(self, last: Linear, linears: Sequence[Linear]) -> int:
        """Return how often what a last layer takes is kept by what made it: attention, an activation, a gate."""
        if "attn" in last.name or "attention" in last.name:
            return 1
        part = last.name.rpartition(".")[0]
        beside = [one for one in linears if not one.last and one.name.rpartition(".")[0] == part]
        return self.more + (sum(one.rows for one in beside) >= 2 * last.columns)

    def _norms(self, block: Mapping[str, tuple[int, ...]], linears: Sequence[Linear]) -> float:
        """Return what norms keep in fp32: of queries and keys, of the stream beyond two, and where they learn."""
        widths = {}
        for name, shape in block.items():
            if len(shape) == 1 and name.endswith("weight") and "norm" in name:
                part = QK_NORM.search(name)
                near = f".{part[0][1]}_proj" if part else ""
                widths[name] = next((one.rows for one in linears if near and one.name.endswith(near)), shape[0])
        of_heads = sum(width for name, width in widths.items() if QK_NORM.search(name))
        of_stream = sum(1 for name in widths if not QK_NORM.search(name))
        learning = sum(width for name, width in widths.items() if name.rpartition(".")[0] in self.modules)
        return 4 * (of_heads + max(of_stream - 2, 0) * self.model_width + learning)
