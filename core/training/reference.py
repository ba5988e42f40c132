"""What the model says of all answers before it learns: asked once and kept, so that no copy of it is needed."""

from __future__ import annotations

from dataclasses import replace
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


def ask(trainer: Ordered, pairs: Pairs, collator: Flat | Padder, name: str, tail: float, context: Context) -> Pairs:
    """Return the pairs with what the model of `trainer` says of each row.

    name: of the file in the run folder in which the answers are kept, and found when a run goes on. tail: as for
    preference.weighed_B. Raises Stopped when asked to stop.
    """
    path = context.folder / f"{name}.npy"
    if path.exists():
        return replace(pairs, reference_B=np.load(path, allow_pickle=False))
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
    aside = path.with_suffix(".tmp.npy")
    np.save(aside, found_N2.ravel())
    publish(aside, path)
    return replace(pairs, reference_B=found_N2.ravel())
