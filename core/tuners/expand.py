"""Block expansion (LLaMA Pro, Wu et al., arXiv 2401.02415): new blocks between the old ones learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, LiteralString

from core.errors import InputError
from core.models import longer
from core.models.shapes import Shapes, fresh, grown, order
from core.schema import knob
from core.tuners import Rows, Tuner, learn, save_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Expand(Tuner):
    """LLaMA Pro
    New blocks between those of the model learn, and they alone. It forgets little, but grows; wants many rows."""

    kind: Literal["expand"] = "expand"
    own_weights: ClassVar[bool] = True
    blocks: int = knob(2, ge=1, le=256)
    """New blocks
    How many. They are spread evenly and change nothing at first. Typical: a quarter of the blocks there are."""

    def against_tokens(self, *, decay: bool) -> tuple[LiteralString, str]:
        return "vocabulary.tuner", "tuner"

    def grown(self, shapes: Shapes) -> Shapes:
        if self.blocks > len(shapes.blocks):
            raise InputError("expand.blocks", "tuner.expand.blocks", given=self.blocks, count=len(shapes.blocks))
        return grown(shapes, self.blocks)

    def learns(self, shapes: Shapes, tokens: int = 0) -> dict[str, tuple[int, ...]]:
        places = order(len(shapes.blocks) - self.blocks, self.blocks)  # they have grown already
        return {name: shape for place in fresh(places) for name, shape in shapes.blocks[place].items()}

    def check(self, shapes: Shapes) -> None:
        super().check(shapes)
        longer.check(shapes, self.blocks)

    def check_made(self, made: PreTrainedModel) -> None:
        from core.models.blocks import lengthen

        lengthen(made, self.blocks)

    def attach(
        self, model: PreTrainedModel, folder: Path, tokens: Sequence[int] = (), rows: Rows = ()
    ) -> PreTrainedModel:
        from core.models.blocks import expand

        learn(model, expand(model, self.blocks))
        return model

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        return save_whole(model, tokenizer, folder)
