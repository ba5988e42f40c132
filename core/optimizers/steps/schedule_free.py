"""schedulefree's AdamW, whose way from training to the mean of the weights and back changes no bit."""

from __future__ import annotations

import torch
from schedulefree import AdamWScheduleFree


class Averaged(AdamWScheduleFree):
    """Keeps the weights of training aside while those of evaluation and of checkpoints are in their place.

    The package computes them back, with a rounding that a run would have only where it was stopped. The copy takes as
    much as the gradients, which are not there then.
    """

    @torch.no_grad()
    def eval(self) -> None:  # where optimizer.eval() of Trainer ends
        for group in self.param_groups:
            for weight in group["params"]:
                if group["train_mode"] and "z" in self.state[weight]:
                    self.state[weight]["trained"] = weight.clone()
        super().eval()

    @torch.no_grad()
    def train(self) -> None:
        super().train()
        for group in self.param_groups:
            for weight in group["params"]:
                if "trained" in self.state[weight]:
                    weight.copy_(self.state[weight].pop("trained"))
