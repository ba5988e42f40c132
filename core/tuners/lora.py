"""LoRA and its kin (Hu et al., arXiv 2106.09685): small added matrices learn, the base stays."""

from __future__ import annotations

from typing import Literal

from core.schema import knob
from core.tuners import Tuner


class Lora(Tuner):
    """LoRA
    Small matrices beside the frozen weights learn. Light, quick and easy to swap: right for most cases."""

    kind: Literal["lora"] = "lora"
    rank: int = knob(16, ge=1, le=1024)
    """Rank
    Width of the added matrices. Raise it when the skill is rich and the rows are many. Typical: 8 to 64."""
    alpha: float = knob(32.0, gt=0, le=8192)
    """Alpha
    Strength of the adapter: what it adds is scaled by alpha / rank. Typical: once or twice the rank."""
    dropout: float = knob(0.0, ge=0, lt=1)
    """Dropout
    Share of the adapter's input dropped in training. Raise it when few rows are learned by heart. Typical: 0 to 0.1."""
    targets: list[str] = knob(["all-linear"], min_length=1, max_length=64, expert=True)
    """Targets
    Names of the modules that get an adapter, for example q_proj and v_proj. all-linear means every linear layer but
    the head."""
    rslora: bool = knob(False, expert=True)
    """rsLoRA
    Scale by alpha / √rank instead (arXiv 2312.03732). Turn it on for ranks above 64."""
    dora: bool = knob(False, expert=True)
    """DoRA
    Learn length and direction of the weights apart (arXiv 2402.09353): often a little better, clearly slower."""
    pissa: bool = knob(False, expert=True)
    """PiSSA
    Begin with the principal parts of the weights (arXiv 2404.02948): often learns faster. Saved as plain LoRA."""
