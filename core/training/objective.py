"""What a stage minimises: a loss over what the model says of the tokens to learn, computed for those tokens alone."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from core.data.encode import IGNORED
from core.models import value_head
from core.models.value_head import ValueHead
from core.training import chunks
from core.training.chunks import bare

Batch = dict[str, Any]
Metrics = dict[str, torch.Tensor]
"""Numbers for the curves of a stage, named group/name as TRL does; two are a sum and how many it is of.
`aux_loss` is that of routers."""


class Objective(Protocol):
    """A loss that a stage asks for. Trainer calls it with batches of the collator that goes with it."""

    @property
    def per_token(self) -> bool:
        """Whether the loss is a mean over the learned tokens of the whole step; else over the examples of a batch."""
        ...

    @property
    def paired(self) -> bool:
        """Whether an example is two rows, as data.pairs.Pairs gives them."""
        ...

    @property
    def asks(self) -> bool:
        """Whether the model is asked what it says of all rows before it learns (training.reference)."""
        ...

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        """Return (loss, metrics). count: learned tokens of the step, or rows; None where nobody counted them."""
        ...


@dataclass(frozen=True)
class Said:
    """What a model says of the tokens that are learned, K of them in B rows."""

    logps_K: torch.Tensor
    """Logarithms of their probabilities, fp32."""
    row_K: torch.Tensor
    """The row that each belongs to."""
    rows: int
    aux_loss: torch.Tensor | None

    def sums_B(self) -> torch.Tensor:
        """Return the logarithm of the probability of what is learned of each row."""
        return self.logps_K.new_zeros(self.rows).index_add(0, self.row_K, self.logps_K)

    def counts_B(self) -> torch.Tensor:
        """Return how many tokens are learned of each row."""
        return torch.bincount(self.row_K, minlength=self.rows)

    def metrics(self) -> Metrics:
        return {} if self.aux_loss is None else {"aux_loss": self.aux_loss}


@dataclass(frozen=True)
class Seen:
    """What a model makes of the places before the tokens that are learned, K of them in B rows."""

    logits_K_V: torch.Tensor
    value_K: torch.Tensor | None
    """What a value head says there; None where none was asked."""
    targets_K: torch.Tensor
    """The tokens that are learned."""
    row_K: torch.Tensor
    rows: int
    aux_loss: torch.Tensor | None


class Places:
    """Where in a batch the tokens stand that are learned: the places before them, whose logits are wanted.

    A batch is one line of rows with their bounds (Flat), or rows padded at their end (Padder).
    """

    def __init__(self, model: Any, batch: Batch) -> None:
        targets_B_T = batch["labels"][:, 1:]
        learned_B_T = targets_B_T != IGNORED
        self.given = {name: value for name, value in batch.items() if name != "labels"}
        self.kept_P = learned_B_T.any(0).nonzero().squeeze(-1)
        self.keeps = _keeps(model)
        """Whether the head computes these places alone."""
        if self.keeps:
            self.given["logits_to_keep"] = self.kept_P
        self.targets_B_P, self.learned_B_P = targets_B_T[:, self.kept_P], learned_B_T[:, self.kept_P]
        self.row_K, at_K = self.learned_B_P.nonzero(as_tuple=True)
        self.rows = len(targets_B_T)
        if (bounds := batch.get("cu_seq_lens_q")) is not None:
            self.row_K = torch.bucketize(self.kept_P[at_K], bounds[1:].to(self.kept_P), right=True)
            self.rows = len(bounds) - 1

    def chosen(self, values_B: torch.Tensor) -> torch.Tensor:
        """Return values_K of those of all places that the head computed."""
        values_B_P = values_B if self.keeps else values_B[:, self.kept_P]
        return self.learned(values_B_P)

    def learned(self, values_B_P: torch.Tensor) -> torch.Tensor:
        # one line of rows has nothing to leave out, and no copy is made
        return values_B_P.flatten(0, 1) if self.learned_B_P.all() else values_B_P[self.learned_B_P]


def look(model: Any, batch: Batch, head: ValueHead | None = None) -> Seen:
    """Return what a model makes of a batch; its head computes the learned places alone where it can."""
    places = Places(model, batch)
    with value_head.reading(model, head) if head else nullcontext():
        out = model(**places.given, use_cache=False)
    return Seen(
        places.chosen(out["logits"]), places.chosen(out["value"]) if head else None,
        places.learned(places.targets_B_P), places.row_K, places.rows, out.get("aux_loss"),
    )  # fmt: skip


def say(model: Any, batch: Batch) -> Said:
    """Return what the model says of the learned tokens of a batch; of many it makes the logits in parts."""
    places = Places(model, batch)
    if places.keeps and (after := chunks.wanted(model, places.targets_B_P)):
        with chunks.said(model, places.targets_B_P, after) as found:
            out = model(**places.given, use_cache=False)
        logps_K = places.chosen(found[0]).squeeze(-1)
    else:
        out = model(**places.given, use_cache=False)
        targets_K = places.learned(places.targets_B_P)
        logps_K = -cross_entropy(places.chosen(out.logits).float(), targets_K, reduction="none")
    return Said(logps_K, places.row_K, places.rows, out.get("aux_loss"))


def _keeps(model: Any) -> bool:
    """Return whether the forward of a model takes the positions whose logits are wanted."""
    inner = bare(model)
    base = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    return "logits_to_keep" in inspect.signature(base.forward).parameters


class NextToken:
    """Cross-entropy over the learned tokens: supervised fine-tuning and pretraining."""

    per_token, paired, asks = True, False, False

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        said = say(model, batch)
        return -said.logps_K.sum() / (len(said.logps_K) if count is None else count), said.metrics()
