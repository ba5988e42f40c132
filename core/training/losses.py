"""Losses over the probabilities of whole answers, each as its paper has it. All take tensors of B pairs or answers.

Ratios are logarithms: of the probability of an answer under the model that learns, over that under the reference.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid, relu


def sigmoid(margin_B: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the loss of DPO (Rafailov et al., arXiv 2305.18290, eq. 7), margin_B: beta times the difference of ratios.

    smoothing: chance that a pair is the wrong way round (conservative DPO, ericmitchell.ai/cdpo.pdf).
    """
    return -(1 - smoothing) * logsigmoid(margin_B) - smoothing * logsigmoid(-margin_B)


def robust(margin_B: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return robust DPO (Chowdhury et al., arXiv 2403.00409, eq. 14): unbiased where pairs are flipped by chance."""
    return (-(1 - smoothing) * logsigmoid(margin_B) + smoothing * logsigmoid(-margin_B)) / (1 - 2 * smoothing)


def hinge(margin_B: torch.Tensor) -> torch.Tensor:
    """Return the hinge loss of SLiC (Zhao et al., arXiv 2305.10425) over the margin of DPO."""
    return relu(1 - margin_B)


def ipo(difference_B: torch.Tensor, beta: float) -> torch.Tensor:
    """Return IPO (Azar et al., arXiv 2310.12036, eq. 17); difference_B: of ratios, each a mean over its tokens."""
    return (difference_B - 1 / (2 * beta)) ** 2


def bco(chosen_B: torch.Tensor, rejected_B: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    """Return BCO for pairs (Jung et al., arXiv 2404.04656) of rewards, beta times ratio; shift: the mean of rewards."""
    return -logsigmoid(chosen_B - shift) - logsigmoid(shift - rejected_B)


def kto(
    ratio_B: torch.Tensor, liked_B: torch.Tensor, distance: torch.Tensor, beta: float, liked: float, disliked: float
) -> torch.Tensor:
    """Return KTO (Ethayarajh et al., arXiv 2402.01306, eq. 8).

    distance: estimate of the KL divergence from the reference, at least 0. liked, disliked: weights.
    """
    good_B = liked * (1 - torch.sigmoid(beta * (ratio_B - distance)))
    bad_B = disliked * (1 - torch.sigmoid(beta * (distance - ratio_B)))
    return torch.where(liked_B, good_B, bad_B)


def log_odds(mean_B: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 - p)) of answers; mean_B: log p, a mean over tokens (ORPO, arXiv 2403.07691, eq. 3)."""
    return mean_B - torch.log(-torch.expm1(mean_B.clamp(max=-1e-7)))
