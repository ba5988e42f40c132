"""transformers' Trainer, as every stage uses it: rows in an order that can be repeated, and the loss of a stage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import load_model
from transformers import PreTrainedModel

from core.data.encode import Encoded
from core.data.pack import Order, Packed
from core.data.pairs import Pairs
from core.models import value_head
from core.models.precision import offloading
from core.team import Team
from core.training.measured import Measured
from core.training.moving import Build, apart, gone, groups, keep_types, nothing, polynomial, settle
from core.training.objective import Objective


class Ordered(Measured):
    """Trainer with an order of rows that a resumed run can repeat, checkpoints that it can read, parameters that learn
    at their own pace, the loss of a stage with its metrics, and activations that wait elsewhere if wanted."""

    build: Build = staticmethod(nothing)
    offload = False
    wrapper = ""
    """Name of the class that the model shall be in while it learns."""
    router_aux_loss = 0.0
    """Weight of the loss of routers."""

    def __init__(
        self, *, pace: Callable[[str], float], objective: Objective, team: Team | None = None, **given: Any
    ) -> None:
        super().__init__(**given, per_token=objective.per_token)
        self.pace, self.objective, self.team = pace, objective, team or Team()
        self.model_accepts_loss_kwargs = objective.per_token
        self.loss_is_scaled_for_ga = True
        self.counts: list[torch.Tensor] = []
        """Of the batches whose metrics in training were not reported yet."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is not None:  # DeepSpeed asks twice
            return cast(torch.optim.Optimizer, self.optimizer)
        model = cast(PreTrainedModel, self.model if model is None else model)
        optimizer = self.build(model, groups(self, model, self.pace), self.args)
        if optimizer is None:  # one that transformers knows
            optimizer = super().create_optimizer(model)
            optimizer.param_groups[:] = apart(optimizer.param_groups, model, self.pace)
        keep_types(optimizer)
        self.optimizer = optimizer
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.args.lr_scheduler_type == "polynomial" and self.lr_scheduler is None:
            self.lr_scheduler = polynomial(optimizer or self.optimizer, self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, *given: Any, **named: Any) -> Any:
        done = super().train(*given, **named)
        settle(self.optimizer)
        return done

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = gone(self.optimizer)  # of gradients that were used and thrown away
        return super()._get_grad_norm(model, grad_norm) if norm is None else norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        settle(self.optimizer)
        super()._save_checkpoint(model, trial)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with offloading(model) if self.offload else nullcontext():
            loss, metrics = self.objective(model, inputs, num_items_in_batch)
        count, processes = self._count(inputs), self.accelerator.num_processes
        if not self.per_token and model.training:  # a mean over the batch becomes its part of that over the step
            loss = loss * (count / num_items_in_batch * processes)
        elif self.per_token and num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * processes  # whose gradients are averaged, though the count is of all
        if model.training:
            self.counts.append(torch.as_tensor(count))
        if self.router_aux_loss and model.training:  # a mean over the step, as the loss is
            loss = loss + self.router_aux_loss * metrics["aux_loss"] / self.current_gradient_accumulation_steps
        self.metrics[model.training].append({name: value.detach() for name, value in metrics.items()})
        return (loss, metrics) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Return how many tokens there are to learn, or how many rows of comparisons, in batches of all processes."""
        if not self.objective.paired:
            return super()._get_num_items_in_batch(batch_samples, device)
        (of_one,) = self.team.means([float(sum(self._count(batch) for batch in batch_samples))])
        return of_one * self.team.size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            told, self.metrics[True] = self.metrics[True], []
            counts, self.counts = self.counts, []
            weights_B = torch.stack(counts).cpu() if counts else torch.ones(len(told))  # what is drawn has no batches
            logs = logs | self._means(told, weights_B)
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        by_length = self.args.train_sampling_strategy == "group_by_length"
        lengths = cast(Encoded | Packed | Pairs, self.train_dataset).lengths_B.tolist()
        return Order(lengths, group, self.args.seed, by_length=by_length)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write weights under the names that they have in memory.

        Under those of their files, which transformers takes by itself, Trainer reads none back where both differ (most
        models that see, mixtures of experts): a resumed run would begin anew without a word.
        """
        model: Any = self.model
        if isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
            if head := value_head.attached(model):
                value_head.save(head, Path(cast(str, output_dir)))
        else:
            model.save_pretrained(output_dir, state_dict=state_dict, save_original_format=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        head = value_head.attached(cast(Any, self.model))
        if head is not None and isinstance(self.model, PeftModel):  # a whole model has it among its weights
            load_model(head, Path(resume_from_checkpoint, value_head.FILE))
