"""Mean and spread of all rewards that a run has seen, kept from step to step and from checkpoint to checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from core.team import Team
from core.training.best import recall

EPSILON = 1e-8


class Running(TrainerCallback, ExportableState):
    """The moments of numbers that come in parts, the same in every process: those of all they have seen.

    They go into every checkpoint, so that a resumed run goes on with them.
    """

    def __init__(self) -> None:
        self.count = self.mean = self.squares = 0.0
        """squares: the sum of the squared distances from the mean."""
        self.team = Team()

    @property
    def spread(self) -> float:
        return math.sqrt(self.squares / max(self.count - 1, 1))

    def add(self, values_B: torch.Tensor) -> None:
        """Take in numbers (Chan et al., 1983), but those of a broken step; all processes take in theirs at once."""
        away_B = values_B.detach().cpu().double() - self.mean
        away_B = away_B[away_B.isfinite()]
        told = self.team.means([float(len(away_B)), float(away_B.sum()), float(away_B.square().sum())])
        count, away, squares = (number * self.team.size for number in told)
        self.count += count
        self.mean += away / max(self.count, 1)
        self.squares = max(self.squares + squares - away * away / max(self.count, 1), 0.0)

    def scaled(self, values_B: torch.Tensor) -> torch.Tensor:
        """Return numbers brought to mean 0 and spread 1 by all that was seen."""
        return (values_B - self.mean) / (self.spread + EPSILON)

    def go_on(self, team: Team, checkpoint: Path | None) -> None:
        """Go on as one of a team, with what was seen when a checkpoint was written."""
        self.team = team
        if checkpoint:
            vars(self).update(recall(self, checkpoint))

    def state(self) -> dict[str, Any]:
        """Return what Trainer writes into trainer_state.json."""
        return {"args": {}, "attributes": {"count": self.count, "mean": self.mean, "squares": self.squares}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        kept: Any = state.stateful_callbacks
        kept.setdefault(type(self).__name__, self.state())  # a checkpoint of an earlier version has none
