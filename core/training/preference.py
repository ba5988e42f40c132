"""What stages minimise that learn from comparisons or feedback: over n better answers, then n worse ones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from torch.nn.modules.dropout import _DropoutNd

from core.team import Team
from core.training import losses
from core.training.chunks import bare
from core.training.objective import Batch, Metrics, Said, say
from core.training.running import Running


def without_adapter(model: Any) -> AbstractContextManager[Any]:
    """Return a context in which the model is the one that its adapter was laid over."""
    inner = bare(model)
    return inner.disable_adapter() if isinstance(inner, PeftModel) else nullcontext()


def undropped(model: torch.nn.Module) -> None:
    """Have a model drop nothing by chance: what it says is compared with what it said, which chance must not change."""
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
        if isinstance(module, _DropoutNd):
            module.p = 0.0


@torch.no_grad()
def reference_B(model: Any, batch: Batch, said: Said, tail: float = 1.0) -> torch.Tensor:
    """Return what the reference says of each row: asked beforehand, or the model without its adapter."""
    if "reference_B" in batch:
        return batch["reference_B"].to(said.logps_K)
    with without_adapter(model):
        return weighed_B(say(model, tokens(batch)), tail)


def tokens(batch: Batch) -> Batch:
    """Return a batch without what a model doesn't take."""
    return {name: value for name, value in batch.items() if name not in ("reference_B", "liked_B", "other")}


def weighed_B(said: Said, tail: float = 1.0) -> torch.Tensor:
    """Return the logarithms of the probabilities of answers, n better ones and then n worse.

    tail: weight of what of an answer lies beyond the length of the other (LD-DPO, Liu et al., arXiv 2409.06411).
    """
    if tail == 1:
        return said.sums_B()
    counts_B = said.counts_B()
    shared_B = torch.minimum(*counts_B.chunk(2)).repeat(2)
    first_B = counts_B.cumsum(0) - counts_B
    at_K = torch.arange(len(said.row_K), device=said.row_K.device) - first_B[said.row_K]
    weight_K = torch.where(at_K < shared_B[said.row_K], 1.0, tail)
    return said.logps_K.new_zeros(said.rows).index_add(0, said.row_K, said.logps_K * weight_K)


def rewards(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> Metrics:
    """Return the curves that all stages over comparisons share."""
    return {
        "rewards/chosen": chosen_B.mean(),
        "rewards/rejected": rejected_B.mean(),
        "rewards/margins": (chosen_B - rejected_B).mean(),
        "rewards/accuracies": (chosen_B > rejected_B).float().mean(),
    }


def imitation(said: Said) -> torch.Tensor:
    """Return the mean over the better answers of the mean cross-entropy of their tokens, so that parts add up."""
    return -(said.sums_B() / said.counts_B()).chunk(2)[0].mean()


@dataclass(frozen=True)
class AgainstReference:
    """DPO and its kin: raise the better answer over the worse one, measured from a reference."""

    kind: str
    """sigmoid, hinge, ipo, robust or bco_pair."""
    beta: float
    smoothing: float = 0.0
    imitate: float = 0.0
    """Weight of the cross-entropy of the better answers."""
    tail: float = 1.0
    """As for weighed_B."""
    running: Running | None = None
    """Of the rewards of all answers so far, whose mean is the shift of bco_pair; None: no shift."""
    asks: bool = False
    per_token = False
    paired = True

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        said = say(model, tokens(batch))
        ratio_B = weighed_B(said, self.tail) - reference_B(model, batch, said, self.tail)
        chosen_B, rejected_B = (self.beta * ratio_B).chunk(2)
        if self.running and model.training:
            self.running.add(self.beta * ratio_B)
        loss = self._loss(ratio_B, chosen_B, rejected_B, said).mean()
        if self.imitate:
            loss = loss + self.imitate * imitation(said)
        return loss, rewards(chosen_B, rejected_B) | said.metrics()

    def _loss(
        self, ratio_B: torch.Tensor, chosen_B: torch.Tensor, rejected_B: torch.Tensor, said: Said
    ) -> torch.Tensor:
        match self.kind:
            case "ipo":
                better_B, worse_B = (ratio_B / said.counts_B()).chunk(2)
                return losses.ipo(better_B - worse_B, self.beta)
            case "bco_pair":
                return losses.bco(chosen_B, rejected_B, self.running.mean if self.running else 0.0)
            case "hinge":
                return losses.hinge(chosen_B - rejected_B)
            case "robust":
                return losses.robust(chosen_B - rejected_B, self.smoothing)
            case _:
                return losses.sigmoid(chosen_B - rejected_B, self.smoothing)


@dataclass(frozen=True)
class OddsRatio:
    """Learn the better answers and raise their odds over those of the worse (Hong et al., arXiv 2403.07691, eq. 6)."""

    beta: float
    per_token = False
    paired = True
    asks = False

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        said = say(model, batch)
        mean_B = said.sums_B() / said.counts_B()
        better_B, worse_B = losses.log_odds(mean_B).chunk(2)
        loss = imitation(said) - self.beta * logsigmoid(better_B - worse_B).mean()
        return loss, rewards(*(self.beta * mean_B).chunk(2)) | said.metrics()


@dataclass(frozen=True)
class WithoutReference:
    """Raise the better answer over the worse one without any reference: CPO and SimPO."""

    beta: float
    gamma: float = 0.0
    """Margin that the better answer must have."""
    imitate: float = 0.0
    smoothing: float = 0.0
    mean: bool = False
    """Compare means over tokens (SimPO) rather than whole answers (CPO)."""
    per_token = False
    paired = True
    asks = False

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        said = say(model, batch)
        of_answers_B = said.sums_B() / said.counts_B() if self.mean else said.sums_B()
        chosen_B, rejected_B = (self.beta * of_answers_B).chunk(2)
        loss = losses.sigmoid(chosen_B - rejected_B - self.gamma, self.smoothing).mean()
        if self.imitate:
            loss = loss + self.imitate * imitation(said)
        return loss, rewards(chosen_B, rejected_B) | said.metrics()


@dataclass(frozen=True)
class LikedOrNot:
    """Learn from single answers that were liked or not; another answer to the same tells how far the model has gone."""

    beta: float
    liked: float
    disliked: float
    asks: bool = False
    team: Team = field(default_factory=Team)
    """Those over whose batches together the distance is measured."""
    per_token = False
    paired = True
    tail = 1.0

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        with torch.no_grad():
            other = say(model, tokens(batch["other"]))
            distance = self._mean(other.sums_B() - reference_B(model, batch["other"], other)).clamp(min=0)
        said = say(model, tokens(batch))
        ratio_B, liked_B = said.sums_B() - reference_B(model, batch, said), batch["liked_B"]
        loss = losses.kto(ratio_B, liked_B, distance, self.beta, self.liked, self.disliked).mean()
        reward_B = self.beta * ratio_B.detach()
        kinds = {"rewards/chosen": reward_B[liked_B], "rewards/rejected": reward_B[~liked_B]}
        metrics = {name: torch.stack([of_kind_B.sum(), reward_B.new_tensor(len(of_kind_B))])
                   for name, of_kind_B in kinds.items()}  # fmt: skip
        # liked beyond the distance, disliked short of it: what the loss asks for
        metrics["rewards/accuracies"] = ((ratio_B > distance) == liked_B).float().mean()
        return loss, metrics | {"objective/kl": distance} | said.metrics()

    def _mean(self, values_B: torch.Tensor) -> torch.Tensor:
        """Return the mean over the examples of all processes."""
        total, count = self.team.means([float(values_B.sum()), float(len(values_B))])
        return values_B.new_tensor(total / count)
