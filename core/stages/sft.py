"""Supervised fine-tuning: learn answers by example."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from core.schema import crossed, knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Sft(Stage):
    """Supervised fine-tuning
    Learn to answer as the examples do."""

    kind: Literal["sft"] = "sft"
    wanted: ClassVar = ("answer", "text")
    train_on_prompt: bool = knob(False, expert=True)
    """Learn the prompts, too
    Count the loss on the questions as well. Useful for very few or very short answers."""

    mask_history: bool = knob(False, expert=True)
    """Learn the last answer only
    Of a conversation with several turns only the last answer is learned; earlier ones are what it rests on."""

    loss: Literal["cross_entropy", "dft"] = knob("cross_entropy", expert=True)
    """Loss
    Cross-entropy teaches the examples as they are. DFT lets each token count by its probability, so that odd ones count
    little: often generalises better in reasoning, its losses are far smaller (arXiv 2508.05629)."""
    anchor: float = knob(0.0, ge=0, le=100, expert=True)
    """Anchor
    Weight of the distance from the model as it was: it forgets less. DFT with an anchor is ASFT (arXiv 2509.23753).
    Costs a second pass without gradients. 0 turns it off. Typical: 0.05 to 0.1."""
    label_smoothing: float = knob(0.0, ge=0, lt=1, expert=True)
    """Label smoothing
    Part of the target that is spread over all tokens: for answers that may be wrong. Typical: 0 to 0.1."""
    z_loss: float = knob(0.0, ge=0, le=1, expert=True)
    """Z-loss
    Weight of the square of the logits' size, which keeps them from growing in long runs. Typical: 0.0001."""
    neftune: float = knob(0.0, ge=0, le=100, expert=True)
    """NEFTune
    Noise on the embeddings while it learns (arXiv 2310.05914): often gives better answers from few rows. 0 turns it
    off. Typical: 5 to 15."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Sft:
        if self.train_on_prompt and self.mask_history:
            raise crossed("sft.prompt_and_last", "stage.sft.mask_history")
        if self.loss == "dft" and self.label_smoothing:
            raise crossed("sft.smoothing", "stage.sft.label_smoothing")
        return self

    @property
    def in_parts(self) -> bool:
        return not (self.loss == "dft" or self.anchor or self.label_smoothing or self.z_loss or self.neftune)

    @property
    def beside_logits(self) -> int:
        if self.anchor:  # logarithms of both probabilities, those of the base, and the way back; smoothing has its own
            return 5 if self.label_smoothing else 4
        return 2 if self.z_loss else 0  # probabilities, and a gradient of its own

    def needs_base(self) -> str:
        return "stage.sft.anchor" if self.anchor else ""

    def masks(self) -> dict[str, bool]:
        return {"train_on_prompt": self.train_on_prompt, "mask_history": self.mask_history}

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.imitation import Imitation
        from core.training.objective import NextToken

        changed = Imitation(self.loss == "dft", self.label_smoothing, self.z_loss, self.anchor, self.neftune)
        return course.train(run, context, NextToken() if self.in_parts else changed, **self.masks())
