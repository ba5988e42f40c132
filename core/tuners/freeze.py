"""Freeze tuning: some layers learn, the others stay."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.errors import InputError
from core.schema import knob
from core.tuners import Tuner, learn, save_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BLOCK = re.compile(r"(.*?\.(?:layers|h|blocks|block|layer))\.(\d+)\.")
"""The name of a parameter of one of the repeated layers: the stack, the number of the layer."""


class Freeze(Tuner):
    """Freeze
    Only some layers learn. Lighter than full tuning, no added matrices."""

    kind: Literal["freeze"] = "freeze"
    layers: int = knob(2, ge=-1024, le=1024)
    """Layers that learn
    Counted from the end; a negative number counts from the beginning. Typical: 1 to a quarter of all."""
    extra: list[str] = knob([], max_length=64, expert=True)
    """Modules that learn, too
    Names such as embed_tokens, lm_head or norm."""

    def attach(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        names = [name for name, _ in model.named_parameters()]
        learn(model, self._of_layers(names) | self._of_modules(names))
        return model

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        return save_whole(model, tokenizer, folder)

    def _of_layers(self, names: list[str]) -> set[str]:
        """Return the parameters of the chosen layers."""
        numbers = {name: int(match[2]) for name in names if (match := BLOCK.match(name))}
        count = max(numbers.values(), default=-1) + 1
        if abs(self.layers) > count:
            raise InputError("freeze.layers", "tuner.freeze.layers", given=abs(self.layers), count=count)
        learning = range(count)[count - self.layers :] if self.layers >= 0 else range(-self.layers)
        return {name for name, number in numbers.items() if number in learning}

    def _of_modules(self, names: list[str]) -> set[str]:
        """Return the parameters of the modules named in `extra`; raise InputError for a name that fits none."""
        found: set[str] = set()
        for module in self.extra:
            fitting = {name for name in names if f".{module}." in f".{name}."}
            if not fitting:
                known = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
                raise InputError("tuner.no_module", "tuner.freeze.extra", module=module, known=", ".join(known[:20]))
            found |= fitting
        return found
