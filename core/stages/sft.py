"""Supervised fine-tuning: learn answers by example."""

from __future__ import annotations

from typing import Literal

from core.schema import knob
from core.stages import Stage


class Sft(Stage):
    """Supervised fine-tuning
    Learn to answer as the examples do."""

    kind: Literal["sft"] = "sft"
    train_on_prompt: bool = knob(False, expert=True)
    """Learn the prompts, too
    Count the loss on the questions as well. Useful for very few or very short answers."""
