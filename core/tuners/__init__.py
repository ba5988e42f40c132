"""Which weights learn: one file, one tuner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.schema import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Tuner(Spec):
    """A way to choose or add the weights that learn; `kind` names it."""

    kind: str

    def attach(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model with only the weights of this tuner trainable, those in fp32."""
        raise NotImplementedError
