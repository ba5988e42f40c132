"""From a conversation to an answer: prompt tokens, sampling, and a generation that can be watched and stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from core.data.places import Placeholders, laid_out
from core.data.render import TEMPLATE_FAULTS, controls, escaped
from core.data.tokens import Tokenizer
from core.errors import InputError
from core.formats import Message
from core.generation import Generation
from core.models import damage
from core.models.rope import context
from core.models.senses import on

Beside = Callable[[list[int], int], dict[str, torch.Tensor]]
"""(where each row begins, how wide the batch is) -> what the model gets beside the tokens (Senses.beside)."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    ask: bool = True,
    placeholders: Placeholders = dict,
) -> str:
    """Return the conversation as the text that the model sees; ask: end where the next answer begins.

    Messages may have places for files (data.places). Raises InputError
    when the template refuses it, as some do with system messages or two turns of one role.
    """
    said = escaped(list(messages), controls(tokenizer))  # what people type never steers the model
    try:
        said: Any = laid_out(said, tokenizer.get_chat_template(), placeholders)
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=ask)
    except TEMPLATE_FAULTS as error:
        raise InputError("chat.template", "messages", what=str(error)[:200]) from None
    assert isinstance(text, str)
    return text


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of rendered texts; the template has put the special tokens in already."""
    return [ids.tolist() for ids, _, _ in Tokenizer(tokenizer).encode(texts)]


def sampling(generation: Generation, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the settings in the terms of transformers; answers end at the end token of tokenizer or model."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ends = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    chosen: dict[str, Any] = {"do_sample": False}
    nameless = range(len(tokenizer), model.config.get_text_config().vocab_size)  # rows that no token has
    if generation.temperature > 0:
        chosen = {"do_sample": True, "temperature": generation.temperature, "top_p": generation.top_p,
                  "top_k": generation.top_k}  # fmt: skip
    return GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        repetition_penalty=generation.repetition_penalty,
        eos_token_id=sorted({end for end in ends if isinstance(end, int)}),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        suppress_tokens=list(nameless) or None,
        **chosen,
    )


def room(model: PreTrainedModel, generation: Generation) -> int:
    """Return how many tokens a question may have so that the longest answer still fits; raise InputError when none."""
    limit = context(model.config)
    if generation.max_new_tokens >= limit:
        raise InputError("generation.too_long", "generation.max_new_tokens", given=generation.max_new_tokens,
                         context=limit)  # fmt: skip
    return limit - generation.max_new_tokens


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return input_ids and attention_mask (B, T), shorter rows filled up at the left."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def draw(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    *stops: threading.Event,
    streamer: BaseStreamer | None = None,
    beside: Beside | None = None,
) -> torch.Tensor:
    """Return the tokens of the answers to a batch of prompts (B, T), ended ones filled up with the pad token.

    beside: gives what the batch needs beside its tokens. Setting any of `stops` ends it after the next token.
    """
    inputs = pad_left(prompts, settings.pad_token_id, model.device)
    if beside:
        width = inputs["input_ids"].shape[1]
        inputs |= on(model, beside([width - len(prompt) for prompt in prompts], width))
    ids_B_T: torch.Tensor = cast(Any, model).generate(  # typed for a protocol that no model class fulfils
        **inputs,
        generation_config=settings,
        streamer=streamer,
        stopping_criteria=StoppingCriteriaList([_Stop(stops)]),
        logits_processor=LogitsProcessorList([_Look(model)]),
    )
    return ids_B_T[:, inputs["input_ids"].shape[1] :]


class _Look(LogitsProcessor):
    """Looks whether the first logits of an answer are numbers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.looked = model, False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: (B, V), given back as they are. Raises InputError where weights in the files are no numbers."""
        if not self.looked:
            self.looked = True
            damage.check(self.model, scores)
        return scores


class _Stop(StoppingCriteria):
    """Ends a generation once any of the events is set."""

    def __init__(self, events: Sequence[threading.Event]) -> None:
        self.events = events

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        """input_ids (B, T) -> (B,), True for every row when it is time to stop."""
        over = any(event.is_set() for event in self.events)
        return cast(torch.BoolTensor, torch.full(input_ids.shape[:1], over, device=input_ids.device))


class TextPieces(BaseStreamer):
    """Hands an answer on as text while it grows, never with half a character in it.

    A token may be a part of a character, and its text may depend on the one before: so the last two stretches are
    decoded together, and the new one is what comes out more.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, give: Callable[[str], None]) -> None:
        self.tokenizer, self.give = tokenizer, give
        self.ids: list[int] = []
        self._context, self._told = 0, 0
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, then one token at a time."""
        if self._prompt:
            self._prompt = False
            return
        self.ids += value.flatten().tolist()
        self._tell(last=False)

    def end(self) -> None:
        self._tell(last=True)

    def _tell(self, *, last: bool) -> None:
        before = self._text(self.ids[self._context : self._told])
        after = self._text(self.ids[self._context :])
        if len(after) > len(before) and (last or not after.endswith("\ufffd")):
            self.give(after[len(before) :])
            self._context, self._told = self._told, len(self.ids)

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
