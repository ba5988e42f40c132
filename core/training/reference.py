"""What the model says of all answers before it learns: asked once and kept, so that no copy of it is needed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel

from core.data.pack import Flat, Padder
from core.data.pairs import Pairs, Sides
from core.files import publish
from core.training.objective import say
from core.training.ordered import Ordered
from core.training.phases import Phases
from core.training.preference import weighed_B
from core.workspace import Context

SUM = ".sha256"
"""Suffix of the file with the sum of another one."""


def ask(trainer: Ordered, pairs: Pairs, collator: Flat | Padder, name: str, tail: float, context: Context) -> Pairs:
    """Return the pairs with what the model of `trainer` says of each row.

    name: of the file in the run folder in which the answers are kept, and found when a run goes on; the model is asked
    anew where it is damaged. tail: as for preference.weighed_B. Raises Stopped when asked to stop.
    """
    path = context.folder / f"{name}.npy"
    if (kept_B := _kept(path)) is not None:
        return replace(pairs, reference_B=kept_B)
    found_N2 = np.zeros((len(pairs), 2), np.float32)
    order, size = np.argsort(pairs.lengths_B), trainer.args.train_batch_size
    sides, phases = Sides(collator), Phases(context)
    phases.begin("reference", total=len(order))
    model = cast(PreTrainedModel, trainer.model).eval()
    for begin in range(0, len(order), size):
        phases.advance(begin)
        chosen = order[begin : begin + size]
        batch = trainer._prepare_inputs(sides([pairs[index] for index in chosen]))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            said_B = weighed_B(say(model, batch), tail)
        found_N2[chosen] = said_B.float().cpu().numpy().reshape(2, -1).T
    _keep(path, found_N2.ravel())
    return replace(pairs, reference_B=found_N2.ravel())


def _keep(path: Path, found_B: np.ndarray) -> None:
    """Write the answers aside, and their sum beside them; rename them last."""
    content = io.BytesIO()
    np.save(content, found_B)
    path.with_suffix(SUM).write_text(hashlib.sha256(content.getvalue()).hexdigest(), encoding="ascii")
    aside = path.with_suffix(".tmp")
    aside.write_bytes(content.getvalue())
    publish(aside, path)


def _kept(path: Path) -> np.ndarray | None:
    """Return the answers in a file; None where there are none, or not as they were written."""
    try:
        content, wanted = path.read_bytes(), path.with_suffix(SUM).read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).hexdigest().encode() != wanted:
        return None
    return np.load(io.BytesIO(content), allow_pickle=False)
