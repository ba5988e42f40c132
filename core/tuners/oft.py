"""Orthogonal fine-tuning (Qiu et al., arXiv 2306.07280): the weights are turned, their lengths and angles stay."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, LiteralString

from pydantic import field_validator

from core.errors import InputError
from core.files import aside
from core.models.shapes import Linear, Shapes
from core.models.tables import ends
from core.models.targets import check_targets, ending, targeted
from core.schema import knob
from core.tuners import Rows, Tuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CROSSWISE = ("gpt2",)
"""Types of the registry of which all layers but the head are Conv1D: their weights lie crosswise."""


class Oft(Tuner):
    """OFT
    The frozen weights are turned, block by block. Keeps what the model knows best; slower than LoRA."""

    kind: Literal["oft"] = "oft"
    usual_rate: ClassVar[float] = 2e-4
    block: int = knob(32, ge=2, le=1024)
    """Block size
    Inputs that are turned together; it must divide the width of every layer. Larger learns more. Typical: 16 to 64."""
    dropout: float = knob(0.0, ge=0, lt=1)
    """Dropout
    Share of the blocks that are left unturned in a step. Raise it when few rows are learned by heart."""
    targets: list[str] = knob(["all-linear"], min_length=1, max_length=64, expert=True)
    """Targets
    Names of the layers that are turned, or regular expressions of whole names: .* means the same as all-linear. Only
    linear layers of the text part are meant; heads, what chooses experts, and what sees or hears must be named:
    lm_head, .*vision_tower.*q_proj."""

    _targets_end = field_validator("targets")(ending)

    def needs_whole(self) -> None:
        return None

    def keeps_base(self) -> bool:
        return True

    @property
    def masks(self) -> bool:
        return self.dropout > 0

    def beside(self, linear: Linear) -> tuple[int, int]:
        return 0, 4 * linear.columns * self.block  # powers of the blocks, from which a turn is made

    def learns(self, shapes: Shapes, tokens: int = 0) -> dict[str, tuple[int, ...]]:
        turns = self.block * (self.block - 1) // 2
        return {f"{one.name}.oft_R": (one.columns // self.block, turns) for one in self._linears(shapes)}

    def check(self, shapes: Shapes) -> None:
        check_targets(shapes, self.targets, "tuner.oft.targets", lora=False)
        if shapes.type in CROSSWISE and targeted(shapes, self.targets):
            raise _crosswise(shapes.type)
        if odd := next((one for one in self._linears(shapes) if one.columns % self.block), None):
            raise _uneven(self.block, odd.name, odd.columns)

    def against_tokens(self, *, decay: bool) -> tuple[LiteralString, str]:
        return "vocabulary.tuner", "tuner"

    def check_made(self, made: PreTrainedModel) -> None:
        self._meant(made)

    def attach(
        self, model: PreTrainedModel, folder: Path, tokens: Sequence[int] = (), rows: Rows = ()
    ) -> PreTrainedModel:
        from peft import OFTConfig, get_peft_model
        from peft.tuners.oft.layer import OFTLayer

        from core.models.adapters import turn_anything
        from core.models.copies import bind

        names = self._meant(model)
        config = OFTConfig(
            task_type="CAUSAL_LM", oft_block_size=self.block, module_dropout=self.dropout, target_modules=names
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")  # said by our own refusal
            tuned: Any = bind(turn_anything(get_peft_model(model, config)))
        for name, module in tuned.named_modules():
            if isinstance(module, OFTLayer) and module.oft_block_size["default"] != self.block:
                raise _uneven(self.block, name.removeprefix("base_model.model."), int(module.in_features or 0))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return tuned

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        with aside(folder / "adapter") as place:
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
        return folder / "adapter"

    def _meant(self, model: PreTrainedModel) -> list[str]:
        """Return the names of the modules that are turned."""
        from transformers.pytorch_utils import Conv1D

        from core.models.linear import chosen

        names = chosen(model, self.targets, "tuner.oft.targets", lora=False)
        if any(isinstance(module, Conv1D) and name.endswith(tuple(names)) for name, module in model.named_modules()):
            raise _crosswise(model.config.model_type)
        return names

    def _linears(self, shapes: Shapes) -> list[Linear]:
        """Return the layers that are turned."""
        return [*targeted(shapes, self.targets), *ends(shapes, self.targets, table=False)]


def _crosswise(model_type: str) -> InputError:
    return InputError("oft.transposed", "tuner", model=model_type)


def _uneven(block: int, module: str, width: int | None) -> InputError:
    return InputError("oft.block", "tuner.oft.block", given=block, module=module, width=width)
