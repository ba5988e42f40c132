"""Freeze tuning: some layers learn, the others stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, LiteralString

from core.errors import InputError
from core.models.shapes import Shapes
from core.models.tables import tables
from core.models.targets import check_names, held
from core.schema import knob
from core.tuners import Rows, Tuner, learn, save_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Freeze(Tuner):
    """Freeze
    Only some layers learn. Lighter than full tuning, no added matrices."""

    kind: Literal["freeze"] = "freeze"
    own_weights: ClassVar[bool] = True
    masks_rows: ClassVar[bool] = True
    layers: int = knob(2, ge=-1024, le=1024)
    """Layers that learn
    Counted from the end; a negative number counts from the beginning. Typical: 1 to a quarter of all."""
    extra: list[str] = knob([], max_length=64, expert=True)
    """Modules that learn, too
    Names such as embed_tokens, lm_head or norm."""

    def learns(self, shapes: Shapes, tokens: int = 0) -> dict[str, tuple[int, ...]]:
        names = list(shapes.tensors)
        chosen = self._of_layers(names, shapes.stack) | {name for name in names if held(name, self.extra, shapes.trunk)}
        if tokens:  # whole tables get gradients, of which only the new rows are not zero
            chosen |= tables(shapes).keys()
        return {name: shape for name, shape in shapes.tensors.items() if name in chosen}

    def check(self, shapes: Shapes) -> None:
        super().check(shapes)
        check_names(shapes, self.extra, "tuner.freeze.extra", tied=False)

    def against_tokens(self, *, decay: bool) -> tuple[LiteralString, str] | None:
        return ("vocabulary.decay", "optimizer") if decay else None

    def idle(self) -> str:
        return "" if self.layers or self.extra else "tuner.freeze.layers"

    def check_made(self, made: PreTrainedModel) -> None:
        self._meant(made)

    def attach(
        self, model: PreTrainedModel, folder: Path, tokens: Sequence[int] = (), rows: Rows = ()
    ) -> PreTrainedModel:
        from core.models import vocabulary

        whole = self._meant(model)
        partly = {name: table for name, table in vocabulary.tables(model).items() if tokens and name not in whole}
        learn(model, whole | partly.keys())
        for table in partly.values():
            vocabulary.only_rows(table, tokens)
        return model

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        return save_whole(model, tokenizer, folder)

    def _meant(self, model: PreTrainedModel) -> set[str]:
        """Return the parameters of all that learns but new tokens."""
        from core.models.blocks import blocks

        names = [name for name, _ in model.named_parameters()]
        return self._of_layers(names, blocks(model)[0] if self.layers else "") | self._of_modules(model, names)

    def _of_layers(self, names: list[str], stack: str) -> set[str]:
        """Return the parameters of the chosen layers of the stack of text blocks."""
        inside = re.compile(re.escape(stack) + r"\.(\d+)\.")
        numbers = {name: int(match[1]) for name in names if (match := inside.match(name))}
        count = max(numbers.values(), default=-1) + 1
        if abs(self.layers) > count:
            raise InputError("freeze.layers", "tuner.freeze.layers", given=abs(self.layers), count=count)
        learning = range(count)[count - self.layers :] if self.layers >= 0 else range(-self.layers)
        return {name for name, number in numbers.items() if number in learning}

    def _of_modules(self, model: PreTrainedModel, names: list[str]) -> set[str]:
        """Return the parameters of the modules named in `extra`; raise InputError for a name that fits none."""
        from core.models.linear import wholly

        modules = tuple(f"{module}." for module in wholly(model, self.extra, "tuner.freeze.extra", tied=False))
        return {name for name in names if name.startswith(modules)}
