"""Trainer as one of several processes: its own rows of every batch, no more and no fewer than are due to it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from transformers import set_seed

from core.data.pack import Order
from core.errors import InputError
from core.team import Team
from core.training.arguments import batches
from core.training.exploring import Exploring
from core.training.measured import means, sums
from core.training.objective import Metrics
from core.training.ordered import Ordered


class Share(BatchSampler):
    """The batches of one process: what all compute at once is dealt out evenly, and each row is seen once in an epoch.

    accelerate would fill the last batch of an epoch with rows from its beginning, which then count twice. Here the
    processes get what there is of it; where that is fewer rows than processes, some of the batch before wait for it.
    Only single rows that are too few for all are left to the next epoch.

    even: each process gets as many as any other; what that leaves over waits, too.
    """

    def __init__(self, order: Any, batch: int, team: Team, *, even: bool = False) -> None:
        self.sampler, self.batch, self.team, self.even = order, batch, team, even or batch == 1

    def __len__(self) -> int:
        return batches(len(self.sampler), self.batch, self.team.size, even=self.even)

    def __iter__(self) -> Iterator[list[int]]:
        rows, size = list(self.sampler), self.team.size
        if self.even:
            rows = rows[: len(rows) // size * size]
        bounds = [*range(0, len(rows), self.batch * size), len(rows)]
        if len(bounds) > 2:
            bounds[-2] = min(bounds[-2], bounds[-1] - size)
        for begin, end in pairwise(bounds):
            yield rows[begin:end][self.team.rank :: size]


class Shared(Ordered):
    """Ordered, as one of several processes."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        set_seed(self.args.seed + self.team.rank)  # what is dropped by chance differs between them

    def _means(self, told: list[Metrics], weights_B: torch.Tensor) -> dict[str, float]:
        found = sums(told, weights_B)
        of_all = iter(self.team.means([number for pair in found.values() for number in pair]))
        return means({name: (next(of_all), next(of_all)) for name in found})

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        order = super()._get_train_sampler(train_dataset)
        order.batch *= self.team.size
        return order

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:  # fmt: skip
        if isinstance(dataset, IterableDataset):  # accelerate lets each process pass over the rows of the others
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        team = self.team
        if is_training and len(dataset) < team.size:
            raise InputError("rank.few_rows", "launcher", rows=len(dataset), size=team.size)
        if is_training:
            share = Share(self._get_train_sampler(), batch_size, team, even=isinstance(self, Exploring))
        elif len(dataset) < team.size:  # all of them look at all there is
            share = Share(self._get_eval_sampler(dataset), batch_size, Team())
        else:
            share = Share(self._get_eval_sampler(dataset), max(batch_size, 2), team)
        pins = self.args.dataloader_pin_memory
        loader = DataLoader(dataset, batch_sampler=share, collate_fn=self.data_collator, pin_memory=pins)
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def _prepare_for_training(self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        found = type(self.model_wrapped).__name__
        if not found.startswith(self.wrapper):  # transformers takes DDP instead, without a word
            raise InputError("launcher.not_wrapped", "launcher", wanted=self.wrapper, found=found)
        return prepared

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            super()._save(output_dir, state_dict)


class ExploringTogether(Exploring, Shared):
    """Exploring, as one of several processes: each draws and judges answers of its own."""
