"""Schedule-free AdamW: the mean of the weights takes the place of a schedule (Defazio et al., arXiv 2405.15682)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from core.models.shapes import Shapes
from core.optimizers import Groups, Learning, Moments, Optimizer, Want, numbers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments


class ScheduleFree(Moments, Optimizer):
    """Schedule-free
    AdamW that needs no schedule: the mean of the weights on the way is evaluated and saved. For runs that are made
    longer or stopped when they are good enough. Warm-up stays."""

    kind: Literal["schedule_free"] = "schedule_free"

    @property
    def wants(self) -> frozenset[Want]:
        return frozenset({"constant"})

    def check(self, device: str) -> None:
        from core.models.packages import check_here

        check_here("schedulefree", "optimizer")

    def build(self, model: PreTrainedModel, groups: Groups, given: TrainingArguments) -> torch.optim.Optimizer:
        from core.optimizers.steps.schedule_free import Averaged

        return Averaged(groups, warmup_steps=int(given.warmup_steps), **self.adam)

    def state_bytes(self, learns: Learning, shapes: Shapes, width: int) -> int:
        return 2 * width * numbers(learns)  # where the steps lead, and the mean of the square of the gradient
