"""Learning from one's own answers: what is kept of them (Experience), and what PPO and GRPO make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from core.team import Team

Parts = list[torch.Tensor]
"""One tensor for each answer, of as many numbers as it has tokens."""


@dataclass
class Experience:
    """Answers of B rows, as they were drawn and judged."""

    rows: list[dict]
    """input_ids and labels of each question with its answer."""
    scores_B: torch.Tensor
    logps: Parts
    """Logarithms of the probabilities with which the tokens were drawn."""
    reference: Parts
    """The same under the model as it was before training."""
    entropy: torch.Tensor
    """Mean over all tokens."""
    values: Parts | None = None
    advantages: Parts | None = None
    returns: Parts | None = None

    @property
    def distance_B(self) -> torch.Tensor:
        """Estimates of the KL divergence from the model before training, of each answer."""
        pairs = zip(self.logps, self.reference, strict=True)
        return torch.stack([(own - other).sum() for own, other in pairs])


def gae(rewards_B_T: torch.Tensor, values_B_T: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """Return advantages_B_T (Schulman et al., arXiv 1506.02438, eq. 16); behind the end of a row all is 0."""
    after_B_T = torch.cat([values_B_T[:, 1:], torch.zeros_like(values_B_T[:, :1])], 1)
    surprise_B_T = rewards_B_T + gamma * after_B_T - values_B_T
    found, last_B = [], torch.zeros_like(values_B_T[:, 0])
    for at in reversed(range(values_B_T.shape[1])):
        last_B = surprise_B_T[:, at] + gamma * lam * last_B
        found.append(last_B)
    return torch.stack(found[::-1], 1)


def credit(seen: Experience, weight: float, gamma: float, lam: float, team: Team) -> None:
    """Set the advantages and returns of every token: its share of the score, less `weight` times the divergence.

    Advantages have mean 0 and spread 1 over the tokens of all processes.
    """
    assert seen.values is not None
    pairs = zip(seen.logps, seen.reference or seen.logps, strict=True)  # without a reference nothing is away from it
    rewards = [-weight * (own - other) for own, other in pairs]
    for reward, score in zip(rewards, seen.scores_B, strict=True):
        reward[-1] += score
    values_B_T = pad_sequence(seen.values, batch_first=True)
    advantages_B_T = gae(pad_sequence(rewards, batch_first=True), values_B_T, gamma, lam)
    lengths = [len(row) for row in seen.values]
    raw = [row[:length] for row, length in zip(advantages_B_T, lengths, strict=True)]
    seen.returns = [row + value for row, value in zip(raw, seen.values, strict=True)]
    every = torch.cat(raw).double()
    count, total, squares = team.means([float(len(every)), float(every.sum()), float((every**2).sum())])
    mean = total / count
    spread = max(squares / count - mean**2, 0.0) ** 0.5
    seen.advantages = [(row - mean) / (spread + 1e-8) for row in raw]


def compare(seen: Experience, group: int, *, scale: bool) -> None:
    """Set the advantage of each answer: how much better than the others to its question (GRPO, arXiv 2402.03300).

    group: answers to one question, which stand together. scale: divide by their spread.
    """
    scores_Q_G = seen.scores_B.view(-1, group)
    better_Q_G = scores_Q_G - scores_Q_G.mean(1, keepdim=True)
    if scale:
        better_Q_G = better_Q_G / (scores_Q_G.std(1, keepdim=True, correction=0) + 1e-4)
    seen.advantages = [row.expand(len(own)) for row, own in zip(better_Q_G.flatten(), seen.logps, strict=True)]


def clipped(
    logps_K: torch.Tensor, old_K: torch.Tensor, advantages_K: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss of each token, whether its ratio was clipped) of PPO (Schulman et al., arXiv 1707.06347, eq. 7)."""
    ratio_K = (logps_K - old_K).exp()
    bounded_K = ratio_K.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio_K * advantages_K, bounded_K * advantages_K), bounded_K != ratio_K


def value_loss(values_K: torch.Tensor, old_K: torch.Tensor, returns_K: torch.Tensor, clip: float) -> torch.Tensor:
    """Return half the mean squared error of values that may move by `clip` at most, the worse of both."""
    bounded_K = old_K + (values_K - old_K).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_K - returns_K) ** 2, (bounded_K - returns_K) ** 2).mean()


def divergence(logps_K: torch.Tensor, reference_K: torch.Tensor) -> torch.Tensor:
    """Return an estimate of the KL divergence at each token that is never negative (GRPO, eq. 4)."""
    away_K = reference_K - logps_K
    return away_K.exp() - away_K - 1


def steered(weight: float, distance: float, target: float, answers: int, horizon: int = 10_000) -> float:
    """Return the next weight of the divergence to bring it to `target` (Ziegler et al., arXiv 1909.08593, 2.2)."""
    error = min(max(distance / target - 1, -0.2), 0.2)
    return weight * (1 + error * answers / horizon)


def probabilities(logits_K_V: torch.Tensor, targets_K: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the logarithms of the probabilities with which tokens are drawn at a temperature, fp32."""
    return -cross_entropy(logits_K_V.float() / temperature, targets_K, reduction="none")


def entropy(logits_K_V: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean entropy of what could have been drawn, in nats."""
    logps_K_V = (logits_K_V.float() / temperature).log_softmax(-1)
    return -(logps_K_V.exp() * logps_K_V).sum(-1).mean()


def by_row(values_K: torch.Tensor, row_K: torch.Tensor, rows: int) -> Parts:
    """Return numbers of tokens, which stand row by row, as one tensor for each row."""
    return list(values_K.split(torch.bincount(row_K, minlength=rows).tolist()))


def chosen(parts: Parts, indices: Sequence[int]) -> torch.Tensor:
    """Return the numbers of some rows, end to end."""
    return torch.cat([parts[index] for index in indices])
