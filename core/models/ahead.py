"""Models that read a row from both ends: taught to tell the next token, they would see it. Cold, but for the trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODERS = ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
            "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
            "xmod")  # fmt: skip
"""Types that look back alone only where their config says is_decoder."""
ALWAYS = ("cpmant", "paligemma")
"""Types that look ahead wherever nobody tells them what is a question and what an answer."""
UNUSABLE = (TypeError, ValueError, RuntimeError, AttributeError)
"""What models raise that take no text alone."""


def check(config: Mapping[str, Any]) -> None:
    """Raise InputError at model.path for a model that looks ahead by its config.json."""
    told = {"xlnet": config.get("attn_type") == "uni", "xlm": bool(config.get("causal"))}
    told |= dict.fromkeys(ENCODERS, bool(config.get("is_decoder"))) | dict.fromkeys(ALWAYS, False)
    if not told.get(model := str(config.get("model_type")), True):
        raise InputError("model.sees_ahead", "model.path", model=model)


def checked(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model; raise InputError at model.path where what it says of the first tokens rests on the last one.

    Shown by a gradient, which is 0 else, whatever the precision.
    """
    import torch

    from core.models.vocabulary import some_tokens

    found: list[torch.Tensor] = []

    def keep(_module: Any, _given: Any, table: torch.Tensor) -> torch.Tensor:
        found.append(table.detach().requires_grad_())
        return found[-1].clone()

    ids_B_T = some_tokens(model, 3, 11)
    hook: Any = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            made = model(input_ids=ids_B_T, attention_mask=torch.ones_like(ids_B_T), use_cache=False).logits
            (learned,) = torch.autograd.grad(made[:, :-1].float().square().sum(), found[:1])
    except UNUSABLE:
        return model
    finally:
        hook.remove()
    if (learned.flatten(0, -2)[-1].abs() > 0).any():  # some lay the tokens of a row along the first dimension
        raise InputError("model.sees_ahead", "model.path", model=model.config.model_type)
    return model
