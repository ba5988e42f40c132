"""What Trainer and optimizers agree on: which weights move alike, and what a checkpoint gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, Trainer, TrainingArguments

from core.optimizers import Groups
from core.optimizers.steps.single import Single

Pace = Callable[[str], float]
Build = Callable[[PreTrainedModel, Groups, TrainingArguments], torch.optim.Optimizer | None]


def nothing(model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> None:
    """Leave the optimizer to transformers."""


def groups(trainer: Trainer, model: PreTrainedModel, pace: Pace) -> list[dict[str, Any]]:
    """Return what learns: with and without weight decay, as Trainer chooses it, each pace by itself."""
    decayed = set(trainer.get_decay_parameter_names(model))
    learning = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    parts = [
        {"params": [weight for name, weight in learning if (name in decayed) is decays], "weight_decay": decay,
         "lr": trainer.args.learning_rate}
        for decays, decay in ((True, trainer.args.weight_decay), (False, 0.0))
    ]  # fmt: skip
    return apart([part for part in parts if part["params"]], model, pace)


def apart(groups: Iterable[dict[str, Any]], model: PreTrainedModel, pace: Pace) -> list[dict[str, Any]]:
    """Return the groups with those weights apart that learn at another pace."""
    paces = {weight: pace(name) for name, weight in model.named_parameters()}
    found = []
    for group in groups:
        for own_pace in sorted({paces[weight] for weight in group["params"]}) or [1.0]:
            own = [weight for weight in group["params"] if paces[weight] == own_pace]
            found.append({**group, "params": own, "lr": group["lr"] * own_pace})
    return found


def polynomial(optimizer: Any, given: TrainingArguments, total: int) -> LambdaLR:
    """Return the schedule of transformers that ends at 1e-7, or at a tenth of a rate that is hardly above it.

    transformers takes the rate from the defaults of an optimizer, which several do without, and DeepSpeed's altogether.
    """
    rate, warm = given.learning_rate, given.get_warmup_steps(total)
    end = min(1e-7, rate / 10)

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        return ((rate - end) * (total - step) / max(total - warm, 1) + end) / rate

    return LambdaLR(optimizer, factor)


def gone(optimizer: Any) -> torch.Tensor | None:
    """Return the norm of the gradients of a step that were used and thrown away; None where they are kept."""
    own = optimizer.optimizer  # inside of what accelerate puts around it
    return own.norm() if isinstance(own, Single) and own.at_once else None


def settle(optimizer: Any) -> None:
    """Put the weights that are evaluated and saved in their place, where those of training are others."""
    optimizer.eval()


def unsettle(optimizer: Any) -> None:
    """Put the weights of training back; Trainer does so itself in its own step."""
    optimizer.train()


def keep_types(optimizer: torch.optim.Optimizer) -> None:
    """Let what an optimizer reads back from a checkpoint be in the number formats in which it was written.

    torch would cast all of it to the format of the weight: what is kept in fp32 for one in 16 bits would be rounded.
    """
    written: dict[int, dict[str, Any]] = {}

    def before(own: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        written.update(state_dict["state"])

    def after(own: torch.optim.Optimizer) -> None:
        weights = [weight for group in own.param_groups for weight in group["params"]]
        for number, state in written.items():
            for key, value in state.items():
                held = own.state[weights[number]].get(key)
                if isinstance(value, torch.Tensor) and isinstance(held, torch.Tensor) and held.dtype != value.dtype:
                    own.state[weights[number]][key] = value.to(held.device)
        written.clear()

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
