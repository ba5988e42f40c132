"""How much memory a run will take at its peak, from the shapes of the weights and the settings alone.

What autograd keeps is counted in core.models.kept. Cold: neither torch nor transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.errors import InputError
from core.models.drawn import drawing, lengthened
from core.models.kept import activations
from core.models.packed import stays
from core.models.room import WORTHWHILE, devices
from core.models.shapes import Shapes
from core.models.tables import CHUNK, passing

if TYPE_CHECKING:
    from core.config import Run

LOGIT_BYTES = 12
"""For each token and word: the logarithm of the probability and two gradients of it, in fp32."""
RUNTIME = {"cpu": 640 << 20, "cuda": 700 << 20, "mps": 700 << 20}
"""Libraries and buffers of the device, before any weight: torch, transformers and peft imported; a CUDA context."""
HEAP = {"own": 0.3, "adapter": 0.65, "packed": 1.0}
"""Of what the layers of a step give, the share that glibc holds on a CPU though it is free: aligned blocks seldom fit
where one of their size was. Measured with glibc 2.36 (bench/memory.py): what learns is the model's own weights,
adapters, or adapters above packed weights."""
OF_MODULE = re.compile(r"\.(weight|bias|magnitude|token_adapter|lora_\w+|oft_\w+)$")


@dataclass(frozen=True)
class Plan:
    """Bytes that a run holds at its peak, by what they are for."""

    weights: int
    """The model as it is computed with, and the low-precision copies of those weights that learn."""
    learning: int
    """Added weights that learn: adapters."""
    gradients: int
    optimizer: int
    activations: int
    logits: int
    left: int
    """Gradients of logits: the part of `logits` that is left when the head goes back."""
    head: int
    """Gradient of the head where it learns: a part of `gradients`, or of a copy with new rows."""
    passing: int
    """Gradients beyond those of what learns: of a table that is embedding and head, or of which only rows learn."""
    heap: int
    """Freed, and held by the allocator of a CPU."""
    drawing: int
    """What answers take that the model draws itself, before it learns from them."""
    runtime: int
    tokens: int
    """In one batch, if every row is as long as the cutoff allows, and every answer that is drawn."""
    parameters: int
    modules: Mapping[str, int]
    """Kind of module, with * for the numbers of blocks and experts -> weights that learn in all of that kind."""

    @property
    def trainable(self) -> int:
        """Weights that learn."""
        return sum(self.modules.values())

    @property
    def peak(self) -> int:
        """Bytes held at once: gradients come while activations go, so the largest of these moments counts.

        They are the loss, the head on the way back, when of logits the gradients are left, and its end. Answers are
        drawn while there is none of these.
        """
        loss, back = self.activations + self.logits, self.activations + self.left + self.head
        return self.lasting + self.heap + max(loss, back, self.gradients + self.passing, self.drawing)

    @property
    def lasting(self) -> int:
        """Bytes that are held from the first step to the last."""
        return self.runtime + self.weights + self.learning + self.optimizer


def plan(run: Run, shapes: Shapes, device: str, stored: int = 0, *, bf16: bool = False) -> Plan:
    """Return what a run takes on "cpu", "cuda" or "mps". Raises InputError where nothing would learn.

    stored: bytes of the weights in their files where they come quantized; 0 where they don't.
    bf16: whether the device multiplies bf16 where the precision is left to us.
    """
    packed, pure = bool(stored) or run.model.quantizer.kind != "none", run.model.precision == "pure_bf16"
    parameters = sum(map(math.prod, shapes.tensors.values()))
    half = _half(run, device, bf16=bf16 and not (device == "cpu" and (packed or parameters < WORTHWHILE)))
    width = 2 if half and (device != "cpu" or pure) else 4  # of a weight that stays
    own_width = 2 if pure else 4  # of one that learns
    beneath, shapes = run.tuner.beneath(shapes, len(run.model.added)), run.tuner.grown(shapes)
    held = sum(map(math.prod, shapes.tensors.values()))
    learns = run.tuner.learns(shapes, len(run.model.added))
    if not learns:
        raise InputError("tuner.nothing", "tuner")
    trainable = sum(map(math.prod, learns.values()))
    own = sum(math.prod(shape) for name, shape in learns.items() if name in shapes.tensors)
    drawn, free = drawing(run, shapes, own_width if shapes.table in learns else width, 2 if half else 4)
    run = lengthened(run, shapes)
    copies = _copies(run, shapes, learns, own, whole=width == 4 and not packed) if half and not pure else 0
    turns = run.optimizer.turns(learns, shapes)
    kept, given = max(activations(run, shapes, turn, device, half=half, packed=packed) for turn in turns)
    gradients = run.optimizer.gradient_bytes(learns, shapes, own_width)
    copy, head_gradient, passes = max(_passing(run, shapes, turn, width, own_width, half=half) for turn in turns)
    again = gradients if run.training.accumulation > 1 else 0  # held while the next batch is computed
    logits, parts = _logits(run, shapes)
    one = Plan(
        weights=_weights(run, shapes, learns, stored, width, own_width) + (0 if stored else width * beneath) + copies,
        learning=own_width * (trainable - own),
        gradients=gradients - again,
        optimizer=run.optimizer.state_bytes(learns, shapes, own_width) + again,
        activations=kept + copy,
        logits=(LOGIT_BYTES + 4 * run.stage.beside_logits) * logits,
        left=LOGIT_BYTES // 3 * logits,
        head=head_gradient * min(parts, 2),  # that of the parts before and that of this
        passing=passes,
        heap=int(HEAP["packed" if packed else "adapter" if trainable > own else "own"] * given + free)
        * (device == "cpu"),
        runtime=RUNTIME[device],
        drawing=drawn,
        tokens=run.stage.together(run.training.batch_size) * run.data.cutoff,
        parameters=held + trainable - own,
        modules=_by_kind(learns),
    )
    return _spread(run, one, device)


def _half(run: Run, device: str, *, bf16: bool) -> bool:
    """Return whether it computes in 16 bits; bf16: where that is left to us."""
    whole = ("fp32", "fp16") if device == "cpu" else ("fp32",)
    return bf16 if run.model.precision == "auto" else run.model.precision not in whole


def _copies(run: Run, shapes: Shapes, learns: Mapping[str, tuple[int, ...]], own: int, *, whole: bool) -> int:
    """Return the bytes of the copies in 16 bits that autocast multiplies, and keeps.

    They are of what learns and of whatever else is held in fp32: of what stays only where autograd wants them, which
    checkpointing computes anew; of no table that is only read.
    """
    read = math.prod(shapes.embedding) if shapes.head else 0
    if whole and not run.training.gradient_checkpointing:
        return 2 * (sum(map(math.prod, shapes.tensors.values())) - read)
    return 2 * (own - read * (shapes.table in learns))


def _logits(run: Run, shapes: Shapes) -> tuple[int, int]:
    """Return how many logits are made at once, and in how many parts all are: those of an answer that was drawn."""
    learned = min(run.stage.drawn(1)[1] or run.data.cutoff, run.data.cutoff)
    logits = run.stage.together(run.training.batch_size) * learned * shapes.embedding[0]
    if logits <= CHUNK or not run.stage.in_parts or any(run.launcher.divides):
        return logits, 1
    return CHUNK, -(-logits // CHUNK)


def _passing(
    run: Run, shapes: Shapes, learns: Mapping[str, tuple[int, ...]], width: int, own_width: int, *, half: bool
) -> tuple[int, int, int]:
    """Return the bytes of tables.Passing: (kept, head, after)."""
    masked = run.tuner.masks_rows and bool(run.model.added)
    found = passing(shapes, learns, own=run.tuner.own_weights, masked=masked)
    if found.kept:  # by what stays, of which a copy is made; in 16 bits, and as wide as it is held
        own_width = width + 2 if half and width == 4 else width
    return (2 if half else 4) * found.kept, own_width * found.head, own_width * found.after


def _spread(run: Run, one: Plan, device: str) -> Plan:
    """Return what a device holds of what one process alone would: a CPU that of all processes on its machine."""
    here = run.launcher.count(len(devices(run.hardware)))
    states, weights = (here * run.launcher.machines if divided else 1 for divided in run.launcher.divides)
    times = here if device == "cpu" else 1
    return replace(
        one,
        weights=one.weights * times // weights,
        learning=one.learning * times // weights,
        gradients=one.gradients * times // states,
        optimizer=one.optimizer * times // states,
        activations=one.activations * times,
        logits=one.logits * times,
        left=one.left * times,
        head=one.head * times,
        passing=one.passing * times,
        heap=one.heap * times,
        drawing=one.drawing * times,
        runtime=one.runtime * times,
    )


def _by_kind(learns: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, shape in learns.items():
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", OF_MODULE.sub("", name))
        found[kind] = found.get(kind, 0) + math.prod(shape)
    return found


def _weights(
    run: Run, shapes: Shapes, learns: Mapping[str, tuple[int, ...]], stored: int, width: int, own_width: int
) -> int:
    """Return the bytes of the model's own weights: what learns, and the matrices of layers as they are packed.

    They count twice where a copy of the model stays beside it.
    """
    if stored:  # of these none can learn: what does is a copy
        return stored + own_width * sum(math.prod(shape) for name, shape in learns.items() if name in shapes.tensors)
    model_type = str(shapes.config.get("model_type"))
    packed = {module for module in shapes.layers if not stays(model_type, module)}
    total = 0.0
    for name, shape in shapes.tensors.items():
        if name in learns:
            total += own_width * math.prod(shape)
        elif name.removesuffix(".weight") in packed:
            total += run.model.quantizer.bytes(shape[0], shape[-1], width)
        else:
            total += width * math.prod(shape)
    return int(total) * (1 + run.stage.copies(keeps_base=run.tuner.keeps_base()))
