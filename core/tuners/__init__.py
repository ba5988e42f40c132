"""Which weights learn: one file, one tuner."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, LiteralString

from core.errors import InputError
from core.models.shapes import Linear, Shapes
from core.schema import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Rows = Sequence[Mapping[str, Any]]


class Tuner(Spec):
    """A way to choose or add the weights that learn; `kind` names it."""

    kind: str
    usual_rate: ClassVar[float] = 2e-5
    """Learning rate that suits most models of some size; small where their own weights learn."""
    own_weights: ClassVar[bool] = False
    """Whether weights of the model itself learn, and not only what is added beside or around them."""
    masks_rows: ClassVar[bool] = False
    """Whether new tokens learn by a mask over the gradients of whole tables."""

    def needs_whole(self) -> tuple[LiteralString, str] | None:
        """Return (code, place) of what stands against quantized weights; None where nothing does."""
        return "quantizer.full", "tuner"

    @property
    def masks(self) -> bool:
        """Whether a mask is kept beside the input of each layer that learns: dropout."""
        return False

    def beside(self, linear: Linear) -> tuple[int, int]:
        """Return how many numbers are kept beside the input of a layer that learns: (for each token, once for all)."""
        return 0, 0

    def grown(self, shapes: Shapes) -> Shapes:
        """Return the shapes of a model with what this tuner adds to its own weights: blocks, a head no longer tied."""
        return shapes

    def beneath(self, shapes: Shapes, tokens: int = 0) -> int:
        """Return how many of the model's own numbers stay beneath copies that learn in their place.

        Of a model as it was before it has grown.
        """
        return 0

    def learns(self, shapes: Shapes, tokens: int = 0) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of what will learn in a model of these shapes, as they have grown.

        tokens: how many of those that it knows are new, so that their rows learn, too.
        An added weight has the name of its layer, as in the files, with its own behind: `...q_proj.lora_A`.
        """
        raise NotImplementedError

    def check(self, shapes: Shapes) -> None:
        """Raise InputError, as `attach` would, for settings that a model with files of these shapes has no place for.

        Of a model whose files have the names and matrices that it has in memory.
        """
        self.learns(self.grown(shapes))

    def check_made(self, made: PreTrainedModel) -> None:
        """Raise InputError, as `attach` would, for settings that a model has no place for; it has no weights yet.

        It may be changed.
        """

    def check_packed(self, packed: Collection[str], *, eight: bool) -> None:
        """Raise InputError for settings that layers held in few bits stand against.

        packed: names of those layers, as in the files or as in memory. eight: whether they are in 8 bits.
        """

    def against(self, quantizer: str) -> tuple[LiteralString, str] | None:
        """Return (code, place) of what stands against a quantizer, by its kind; None where nothing does."""
        return None if quantizer == "none" else self.needs_whole()

    def against_tokens(self, *, decay: bool) -> tuple[LiteralString, str] | None:
        """Return (code, place) of what stands against new tokens, whose rows alone learn; None where nothing does.

        decay: whether the optimizer pulls all that learns towards zero.
        """
        return None

    def against_stream(self) -> tuple[LiteralString, str] | None:
        """Return (code, place) of what stands against rows that can't be looked at before; None where nothing does."""
        return None

    def keeps_base(self) -> bool:
        """Return whether the model without its adapter is the one that training began with."""
        return False

    def idle(self) -> str:
        """Return the place of the setting that leaves none of the weights to learn; "" where some do."""
        return ""

    def starts(self) -> list[str]:
        """Return the runs and folders with adapters that the training starts from."""
        return []

    def as_begun(self, workspace: Path) -> Tuner:
        """Return these settings with what is trained on in the place of what they say of something new."""
        return self

    def pace(self, name: str) -> float:
        """Return how many times faster than the others a parameter learns, by its name."""
        return 1.0

    def attach(
        self, model: PreTrainedModel, folder: Path, tokens: Sequence[int] = (), rows: Rows = ()
    ) -> PreTrainedModel:
        """Return the model with only the weights of this tuner trainable, those in fp32.

        folder: the run folder, in `runs` of the workspace. What a resumed run needs to attach in the very same way is
        kept there.
        tokens: ids of new tokens, whose rows learn, too. rows: what is learned from, with input_ids each.
        """
        raise NotImplementedError

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        """Save what was learned into the run folder, `adapter` or `model`, whole or not at all; return where."""
        raise NotImplementedError


def learn(model: PreTrainedModel, names: set[str]) -> None:
    """Let exactly the named parameters learn, in fp32: in fewer bits small steps would be rounded away.

    Raises InputError for a model whose weights are quantized.
    """
    if quantized(model):
        raise InputError("packed.full", "tuner", given=str(model.config.quantization_config.quant_method))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def quantized(model: PreTrainedModel) -> bool:
    """Return whether weights of the model are held in few bits, so that they can neither learn nor be taken apart."""
    return bool(getattr(model, "is_quantized", False))  # transformers sets it on those alone


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save a whole model with its tokenizer as `model`; what learned stays in fp32, so that nothing is rounded away."""
    from core.files import aside
    from core.models import foreign
    from core.models.senses import keep

    with aside(folder / "model") as place:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        keep(Path(tokenizer.name_or_path), place)
        foreign.keep(model, place)
    return folder / "model"
