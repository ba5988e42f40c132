"""The settings of a training run, and which of them go together. Cold, like schema.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from core import crossings
from core.launchers import Launcher
from core.optimizers import Optimizer
from core.schema import Spec, choice, crossed, knob
from core.sections import Data, Hardware, Model, Saving, Training
from core.stages import Stage
from core.tuners import Tuner
from core.watching import Watching

NAME = r"^\w[\w .-]*$"
"""Letters and digits of any script: names are those of folders."""


class Run(Spec):
    """Train
    Teach a model with data."""

    kind: Literal["train"] = "train"
    name: str = knob("run", min_length=1, max_length=60, pattern=NAME)
    """Name
    What it is called in lists and folders. Letters, digits, spaces, dots, dashes and underscores."""
    model: Model = knob(Model())
    """Model
    The base model."""
    data: Data = knob(Data())
    """Data
    What it learns from."""
    stage: Annotated[Stage, choice("core.stages")] = knob({"kind": "sft"})
    """Stage
    The kind of lesson. Supervised fine-tuning teaches answers by example."""
    tuner: Annotated[Tuner, choice("core.tuners")] = knob({"kind": "lora"})
    """Method
    Which weights learn. LoRA trains small added matrices and is right for most cases."""
    optimizer: Annotated[Optimizer, choice("core.optimizers")] = knob({"kind": "adamw"})
    """Optimizer
    How the weights move. AdamW is the safe choice."""
    training: Training = knob(Training())
    """Training
    How long and how carefully it learns."""
    saving: Saving = knob(Saving())
    """Checkpoints
    What is kept on the way."""
    watching: Watching = knob(Watching())
    """Watching
    What is measured on the way."""
    hardware: Hardware = knob(Hardware())
    """Hardware
    What it runs on."""
    launcher: Annotated[Launcher, choice("core.launchers")] = knob({"kind": "single"})
    """Processes
    In how many processes it learns, and on which machines. One is right wherever the model fits on one device."""

    @model_validator(mode="after")
    def _stream_ends(self) -> Run:
        if self.data.streaming and not self.training.max_steps:
            raise crossed("data.stream_endless", "training.max_steps")
        if self.data.streaming and (against := self.tuner.against_stream()):
            raise crossed(*against)
        return self

    @model_validator(mode="after")
    def _pairs_stay_together(self) -> Run:
        if self.data.streaming and self.stage.asks(keeps_base=self.tuner.keeps_base()):
            raise crossed("data.stream_pairs", "data.streaming", stage=self.stage.kind)
        if self.stage.paired and self.data.packing == "always":
            raise crossed("data.packing_pairs", "data.packing", stage=self.stage.kind)
        return self

    @model_validator(mode="after")
    def _what_is_drawn_is_learned(self) -> Run:
        if not self.stage.draws:
            return self
        for wrong, place in (
            (self.training.accumulation > 1, "training.accumulation"),
            (self.data.streaming, "data.streaming"),
            (self.data.packing == "always", "data.packing"),
            (bool(self.data.eval), "data.eval"),
            (bool(self.training.s2), "training.s2"),
        ):
            if wrong:
                raise crossed("stage.draws", place, stage=self.stage.kind)
        return self

    @model_validator(mode="after")
    def _base_is_there(self) -> Run:
        if (place := self.stage.needs_base()) and not self.tuner.keeps_base():
            raise crossed("sft.anchor", place)
        return self

    @model_validator(mode="after")
    def _wishes_can_be_measured(self) -> Run:
        if against := self.watching.against(self.data, self.stage):
            raise crossed(*against)
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> Run:
        decay = bool(self.optimizer.weight_decay)
        if not self.model.added and (place := self.tuner.idle()):
            raise crossed("tuner.nothing", place)
        if self.model.added and (against := self.tuner.against_tokens(decay=decay)):
            raise crossed(*against)
        return self

    @model_validator(mode="after")
    def _s2_is_attention_itself(self) -> Run:
        if self.training.s2 and self.model.attention not in ("auto", "sdpa"):
            raise crossed("s2.attention", "training.s2", attention=self.model.attention)
        return self

    @model_validator(mode="after")
    def _few_bits_stay(self) -> Run:
        if against := self.tuner.against(self.model.quantizer.kind):
            raise crossed(*against)
        crossings.check(self)
        return self

    @model_validator(mode="after")
    def _processes_fit(self) -> Run:
        if against := self.launcher.against(self):
            raise crossed(*against)
        return self
