"""Draws answers, one at a time: a queue of one thread, which alone touches the models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from core.data.album import JOINER
from core.data.media import from_urls
from core.data.render import SEAM
from core.errors import InputError
from core.models import rope
from core.models.answering import TextPieces, draw, encode, render, sampling
from core.models.lineup import Lineup
from core.models.senses import View
from core.serving.protocol import ChatRequest

LONGEST_QUEUE = 16
"""Requests that may wait; one more is told to come back."""


@dataclass(frozen=True)
class Prompt:
    """What is asked."""

    ids: list[int]
    view: View | None = None
    """With images."""


@dataclass(frozen=True)
class Answer:
    """A finished answer: how long it was and why it ended (stop: by itself, length: cut off)."""

    prompt_tokens: int
    tokens: int
    finish: str


class Answerer:
    """The models of a server and the thread that draws their answers."""

    def __init__(self, lineup: Lineup, stop: threading.Event) -> None:
        self.lineup, self._stop = lineup, stop
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answer")
        self._room = threading.BoundedSemaphore(LONGEST_QUEUE + 1)

    def begin(self, request: ChatRequest, give: Callable[[str], None], halt: threading.Event) -> Future[Answer]:
        """Queue the request; `give` is called, in the drawing thread, with each piece of text. Setting `halt` ends it.

        Raises InputError for what is wrong with the request, before anything is queued.
        """
        prompt = self._prompt(request)
        if not self._room.acquire(blocking=False):
            raise InputError("chat.busy", waiting=LONGEST_QUEUE)
        future = self._thread.submit(self._draw, request, prompt, give, halt)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self) -> None:
        """Wait for the answer that is being drawn; those that wait are dropped."""
        self._thread.shutdown(cancel_futures=True)

    def _prompt(self, request: ChatRequest) -> Prompt:
        """Return the prompt; raise InputError when it can't be asked or leaves no room for an answer."""
        if request.model not in self.lineup.names:
            raise InputError("chat.unknown_model", "model", given=request.model, known=", ".join(self.lineup.names))
        tokenizer, senses = self.lineup.tokenizer(request.model), self.lineup.senses(request.model)
        messages = [{"role": message.role, "content": message.text} for message in request.messages]
        if urls := request.urls:
            senses.check(["images"], "messages")
        text = render(tokenizer, messages, placeholders=senses.tokens)
        if urls:
            view = View(text.replace(SEAM, JOINER), {"images": from_urls(urls)})
            prompt = Prompt(senses.read(view).ids_T.tolist(), view)
        else:
            prompt = Prompt(encode(tokenizer, [text])[0])
        limit = rope.context(self.lineup.model(request.model).config)
        if len(prompt.ids) >= limit:
            raise InputError("chat.too_long", "messages", tokens=len(prompt.ids), context=limit)
        return prompt

    def _draw(self, request: ChatRequest, prompt: Prompt, give: Callable[[str], None], halt: threading.Event) -> Answer:
        if halt.is_set() or self._stop.is_set():
            return Answer(len(prompt.ids), 0, "stop")
        tokenizer, senses = self.lineup.tokenizer(request.model), self.lineup.senses(request.model)
        with self.lineup.use(request.model) as model:
            settings = sampling(request.generation, model, tokenizer)
            settings.max_new_tokens = min(request.max_tokens, rope.context(model.config) - len(prompt.ids))
            torch.manual_seed(request.seed)
            ids_T = draw(
                model, [prompt.ids], settings, halt, self._stop, streamer=TextPieces(tokenizer, give),
                beside=lambda starts, width: senses.beside([prompt.view], starts, width),
            )[0]  # fmt: skip
        tokens = len(ids_T)
        ended = ids_T[-1].item() in settings.eos_token_id
        return Answer(len(prompt.ids), tokens, "stop" if ended or tokens < settings.max_new_tokens else "length")
