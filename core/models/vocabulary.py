"""Tokens added to a model: the tokenizer learns their names, the tables of the model get rows for them.

New rows begin near the mean of the others, so that no text becomes less likely by their coming (Hewitt,
nlp.stanford.edu/~johnhew/vocab-expansion.html), and apart from each other, so that they can learn different things.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import InputError
from core.models.tables import MULTIPLE
from core.sections import Model

FIXED = ("deepseek_v4", "nemotron_h_omni")
"""Types that keep the number of tokens in places where transformers does not change it."""
SPREAD = 0.1
"""Of the noise, as a share of the spread of the old rows."""
SEED = 0
"""One for all: rows that no token has are not saved with an adapter, and are made again where it is loaded."""


def add(tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    """Give a tokenizer the tokens of the settings; raise InputError for one that it knows."""
    for tokens, place, special in (
        (model.add_tokens, "model.add_tokens", False),
        (model.add_special_tokens, "model.add_special_tokens", True),
    ):
        known = tokenizer.get_vocab()
        if there := next((token for token in tokens if token in known), None):
            raise InputError("vocabulary.known", place, token=there)
        made: list[Any] = [AddedToken(token, normalized=False, special=special) for token in tokens]
        tokenizer.add_tokens(made, special_tokens=special)


def fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Model) -> list[int]:
    """Give the model rows for the tokens of the settings, all of them in the tokenizer already; return their ids.

    Raises InputError at model.path when the tokenizer knows more tokens than the model for another reason.
    """
    known = len(tokenizer) - len(settings.added)
    if known > (rows := embedding_rows(model)):
        raise InputError("model.vocabulary", "model.path", tokens=known, rows=rows)
    if not settings.added:
        return []
    grow(model, known, len(tokenizer))
    return cast(list[int], tokenizer.convert_tokens_to_ids(settings.added))


def grow(model: PreTrainedModel, known: int, tokens: int, place: str = "model.add_tokens") -> None:
    """Give the model rows for so many tokens, of which it knows the first `known`; their rows stay bit for bit.

    Raises InputError at `place` for a model whose tables can't be resized.
    """
    rows = embedding_rows(model)
    if model.config.model_type in FIXED or not all(_resizable(end, rows) for end in _ends(model)):
        raise InputError("vocabulary.fixed", place, model=model.config.model_type)
    if tokens > rows:
        model.resize_token_embeddings(tokens, pad_to_multiple_of=MULTIPLE, mean_resizing=False)
        tokens = embedding_rows(model)
    for parameter in tables(model).values():
        _begin(parameter.data, known, tokens)
    for head in _ends(model)[1:]:
        if isinstance(head, torch.nn.Linear) and head.bias is not None:
            head.bias.data[known:tokens] = head.bias.data[:known].mean()


def embedding_rows(model: Any) -> int:
    """Return how many tokens a model, with adapters or without, has embeddings for."""
    return model.get_input_embeddings().weight.shape[0]


def some_tokens(model: PreTrainedModel, first: int, end: int) -> torch.Tensor:
    """Return token ids (1, T) to try a model with: from `first` on, over again where it knows fewer tokens."""
    return torch.arange(first, end, device=model.device)[None] % embedding_rows(model)


def embedding_name(model: PreTrainedModel) -> str:
    """Return the name of the embedding."""
    own = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is own)


def tables(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return name -> weights (V, D) of the embedding and of the head; of tied ones the embedding alone."""
    weights = [end.get_parameter("weight") for end in _ends(model)]
    return {name: own for name, own in model.named_parameters() if any(own is weight for weight in weights)}


def by_rows(table: torch.nn.Module) -> bool:
    """Return whether peft computes with a table of which some rows learn as the table itself does."""
    if isinstance(table, torch.nn.Linear):
        return table.bias is None
    scaled = type(table).__name__.endswith("ScaledWordEmbedding")  # Gemma's, whose factor peft knows
    return scaled or type(table).forward is torch.nn.Embedding.forward


def learning(
    model: PreTrainedModel, tokens: Sequence[int], extra: Sequence[str]
) -> tuple[dict[str, list[int]], list[str]]:
    """Return (the rows that learn by name of their table, names of the tables that learn whole instead).

    tokens: those that are new. extra: modules that learn whole anyway.
    """
    names = [name.removesuffix(".weight") for name in tables(model)] if tokens else []
    names = [name for name in names if not any(f".{module}." in f".{name}." for module in extra)]
    whole = [name for name in names if not by_rows(model.get_submodule(name))]
    if whole and len(tables(model)) == 1:  # a copy of one of two tied tables would no longer be tied
        raise InputError("vocabulary.fixed", "model.add_tokens", model=model.config.model_type)
    return {name: list(tokens) for name in names if name not in whole}, whole


def only_rows(parameter: torch.nn.Parameter, ids: Sequence[int]) -> None:
    """Let only some rows of a table learn."""
    learns_V_1 = torch.zeros(len(parameter), 1, dtype=parameter.dtype, device=parameter.device)
    learns_V_1[list(ids)] = 1
    parameter.requires_grad_(True)
    parameter.register_hook(lambda gradient_V_D: gradient_V_D * learns_V_1)


def _ends(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the embedding, and the head where there is one."""
    head = model.get_output_embeddings()
    return [model.get_input_embeddings(), *([head] if head is not None else [])]


def _resizable(table: torch.nn.Module, rows: int) -> bool:
    """Return whether a table holds plain numbers, a row for each token."""
    if not isinstance(table, torch.nn.Embedding | torch.nn.Linear):
        return False
    weight = table.weight.data
    return type(weight) is torch.Tensor and weight.is_floating_point() and len(weight) == rows


def _begin(table_V_D: torch.Tensor, known: int, tokens: int) -> None:
    """Set the rows from `known` to `tokens` to the mean of those before, with a little noise."""
    old = table_V_D[:known].float()
    mean_D, spread_D = old.mean(0), old.std(0)
    seeded = torch.Generator().manual_seed(SEED)
    noise = torch.randn(tokens - known, table_V_D.shape[1], generator=seeded).to(table_V_D.device)
    table_V_D[known:tokens] = (mean_D + SPREAD * spread_D * noise).to(table_V_D.dtype)
