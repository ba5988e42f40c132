"""Evaluation on the way: the mean over all learned tokens of a set, and no trace that anybody looked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from transformers import Trainer

from core.data.encode import IGNORED
from core.training.objective import Metrics


class Measured(Trainer):
    """Trainer whose losses and metrics on a set are means over all its learned tokens, or over all its examples.

    Trainer's own is the mean over batches, in which a token counts the more the fewer its batch has. An evaluation
    draws nothing from the random numbers of the training: however often it is done, the run learns the same.
    """

    sample: Callable[[], None] | None = None
    """What is done after each evaluation of all sets, with the model ready to answer."""

    def __init__(self, *, per_token: bool, **given: Any) -> None:
        """per_token: whether the loss of a batch is a mean over its learned tokens; else over its examples."""
        super().__init__(**given)
        self.per_token = per_token
        self.metrics: dict[bool, list[Metrics]] = {True: [], False: []}
        """What batches told beside their losses: those since the last report in training, those of a set that is
        evaluated."""
        self._weighed: list[torch.Tensor] = []
        """(loss, weight) of each of them."""
        self._loaders: dict[str, Any] = {}

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        device = self.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            metrics = super()._evaluate(*args, **kwargs)
            if self.sample:
                self.sample()
        return metrics

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Return the order of the rows, the longest first: little padding, and if memory is short, it is so at once.

        Trainer's own groups them by chance, so that no two evaluations would compute quite the same.
        """
        return np.argsort(-eval_dataset.lengths_B, kind="stable").tolist()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the loader of a set by its name, the same each time: accelerate keeps all that it ever made."""
        key = str(eval_dataset or "")
        if key not in self._loaders:
            self._loaders[key] = super().get_eval_dataloader(eval_dataset)
        return self._loaders[key]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._weighed, self.metrics[False] = [], []
        output: Any = super().evaluation_loop(*args, **kwargs)
        losses_B, weights_B = torch.stack(self._weighed).double().T
        sums = torch.stack([(losses_B * weights_B).sum(), weights_B.sum()]).to(self.args.device)
        total, weight = cast(torch.Tensor, self.accelerator.reduce(sums)).tolist()
        prefix = kwargs["metric_key_prefix"]
        output.metrics.update(
            {f"{prefix}_{name}": value for name, value in self._means(self.metrics[False], weights_B).items()}
        )
        output.metrics[f"{prefix}_loss"] = total / weight
        return output

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = self._prepare_inputs(inputs)
        weight = self._weight(inputs)
        made: Any = super().prediction_step(model, inputs, *args, **kwargs)
        self._weighed.append(torch.stack([made[0].float(), torch.as_tensor(weight).float().to(made[0].device)]).cpu())
        return made

    def _weight(self, inputs: dict[str, Any]) -> Any:
        """Return how much the loss of a batch counts."""
        if not self.per_token or self.args.world_size == 1:
            return self._count(inputs)
        # of several processes each divides by the tokens of all, and multiplies by how many they are
        count: Any = self._get_num_items_in_batch([inputs], self.args.device)
        return count / self.args.world_size

    def _count(self, inputs: dict[str, Any]) -> Any:
        """Return how many tokens a batch has to learn, or how many rows."""
        if self.per_token:
            return (inputs["labels"][..., 1:] != IGNORED).sum()
        bounds = inputs.get("cu_seq_lens_q")
        return len(inputs["input_ids"]) if bounds is None else len(bounds) - 1

    def _means(self, told: list[Metrics], weights_B: torch.Tensor) -> dict[str, float]:
        """Return the means of what batches told, each with its weight; what a batch does not tell is left out."""
        return means(sums(told, weights_B))


def sums(told: list[Metrics], weights_B: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Return name -> (weighted sum over the batches that tell it, the sum of their weights).

    Two numbers are a sum and what it weighs already.
    """
    found = {}
    for name in dict.fromkeys(name for batch in told for name in batch):
        pairs = [(batch[name].cpu().double(), w) for batch, w in zip(told, weights_B, strict=True) if name in batch]
        parts = [value if value.ndim else torch.stack([value * w, w.double()]) for value, w in pairs]
        found[name] = cast(tuple[float, float], tuple(torch.stack(parts).sum(0).tolist()))
    return found


def means(found: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the means of such sums; of answers that are no pairs the margin is that of the means."""
    told = {name: total / weight for name, (total, weight) in found.items() if weight}
    if {"rewards/chosen", "rewards/rejected"} <= told.keys():
        told.setdefault("rewards/margins", told["rewards/chosen"] - told["rewards/rejected"])
    return told
