"""Draws answers, one at a time: a queue of one thread, which alone touches the models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from core.errors import InputError
from core.models import rope
from core.models.answering import TextPieces, draw, encode, render, sampling
from core.models.lineup import Lineup
from core.serving.protocol import ChatRequest

LONGEST_QUEUE = 16
"""Requests that may wait; one more is told to come back."""


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

    def _prompt(self, request: ChatRequest) -> list[int]:
        """Return the tokens of the prompt; raise InputError when it can't be asked or leaves no room for an answer."""
        if request.model not in self.lineup.names:
            raise InputError("chat.unknown_model", "model", given=request.model, known=", ".join(self.lineup.names))
        tokenizer = self.lineup.tokenizer(request.model)
        messages = [message.model_dump() for message in request.messages]
        prompt = encode(tokenizer, [render(tokenizer, messages)])[0]
        limit = rope.context(self.lineup.model(request.model).config)
        if len(prompt) >= limit:
            raise InputError("chat.too_long", "messages", tokens=len(prompt), context=limit)
        return prompt

    def _draw(
        self, request: ChatRequest, prompt: list[int], give: Callable[[str], None], halt: threading.Event
    ) -> Answer:
        if halt.is_set() or self._stop.is_set():
            return Answer(len(prompt), 0, "stop")
        tokenizer = self.lineup.tokenizer(request.model)
        with self.lineup.use(request.model) as model:
            settings = sampling(request.generation, model, tokenizer)
            settings.max_new_tokens = min(request.max_tokens, rope.context(model.config) - len(prompt))
            torch.manual_seed(request.seed)
            ids_T = draw(model, [prompt], settings, halt, self._stop, streamer=TextPieces(tokenizer, give))[0]
        tokens = len(ids_T)
        ended = ids_T[-1].item() in settings.eos_token_id
        return Answer(len(prompt), tokens, "stop" if ended or tokens < settings.max_new_tokens else "length")
