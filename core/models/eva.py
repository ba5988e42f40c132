"""EVA (Paischer et al., arXiv 2410.07170): an adapter begins with the directions in which its inputs vary most.

Of one batch, for as long as it holds a few thousand tokens: peft's own way goes over the rows until nothing changes any
more, which took 200 s for a model of 2 million weights and can't be stopped. Ranks stay as they are set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from core.errors import InputError
from core.models.shapes import APART

TOKENS = 4096
"""Of the rows that are looked at."""
MORE = 8
"""Directions that are followed beyond those wanted, which makes these exact (Halko et al., arXiv 0909.4061)."""


@torch.no_grad()
def begin(model: Any, rows: Sequence[Mapping[str, Any]], adapter: str) -> None:
    """Set A of each LoRA layer to the first right singular vectors of what the layer is given for the rows.

    rows: with input_ids each. B is zero, so the model answers as before. Raises InputError at tuner.lora.eva for rows
    with files, and for a layer, as of a tower that sees, that texts alone don't pass through.
    """
    if any("media" in row for row in _taken(rows)):
        raise InputError("lora.eva_files", "tuner.lora.eva")
    ids_B_T, mask_B_T = (tensor.to(model.device) for tensor in _batch(rows))

    def look(layer: Any, given: tuple[torch.Tensor, ...], _: Any) -> None:
        unseen.pop(layer, None)
        X = given[0]
        X_N_I = (X[mask_B_T.bool()] if X.shape[:2] == mask_B_T.shape else X.reshape(-1, X.shape[-1])).float()
        rank = layer.r[adapter]
        _, _, V_I_R = torch.svd_lowrank(X_N_I, q=min(rank + MORE, *X_N_I.shape), niter=4)
        found_R_I = V_I_R.T[:rank]
        layer.lora_A[adapter].weight[: len(found_R_I)] = found_R_I

    layers: dict[Any, str] = {module: name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    unseen = {layer: name for layer, name in layers.items() if adapter in layer.lora_A}
    hooks = [layer.register_forward_hook(look) for layer in unseen]
    training = model.training
    try:
        model.eval()(input_ids=ids_B_T, attention_mask=mask_B_T, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if name := next((name for name in unseen.values() if APART.search(name)), ""):
        raise InputError("lora.eva_unseen", "tuner.lora.eva", module=name.removeprefix("base_model.model."))


def _taken(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the first rows, of about as many tokens as are looked at."""
    taken: list[Mapping[str, Any]] = []
    for index in range(len(rows)):
        if sum(len(row["input_ids"]) for row in taken) >= TOKENS:
            break
        taken.append(rows[index])
    return taken


def _batch(rows: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, mask), (B, T) each, of the first rows, shorter ones filled up at the end."""
    taken = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in _taken(rows)]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(taken, batch_first=True), pad([torch.ones_like(row) for row in taken], batch_first=True)
