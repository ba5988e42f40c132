"""Data parallel (Li et al., arXiv 2006.15704): every process holds the whole model, gradients are averaged."""

from __future__ import annotations

from typing import Literal

from core.launchers import Several


class Ddp(Several):
    """DDP
    Each GPU holds the whole model and learns from its own batches: nearly as many times faster as there are GPUs."""

    kind: Literal["ddp"] = "ddp"
