"""What a chat server is asked and what it answers, in the shape of OpenAI's chat completions API. Cold."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.data.media import BYTES
from core.errors import InputError, Problem
from core.formats import PLACES
from core.generation import Generation

STATUS = {"chat.unknown_model": 404, "chat.busy": 429, "chat.unauthorized": 401, "chat.stopped": 503}
"""HTTP status of an error's code; any other is 400."""
NO_PLACES = str.maketrans("", "", "".join(PLACES.values()))
"""Takes out of a text what would stand for a file."""
MOST_PARTS = 100
"""Of one message."""


class TextPart(BaseModel):
    """A text in a turn."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str = Field(max_length=1_000_000)


class ImageUrl(BaseModel):
    """An image as a data: URL; no other is opened."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=BYTES * 4 // 3 + 100)
    detail: Literal["auto"] = "auto"


class ImagePart(BaseModel):
    """An image in a turn."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=1_000_000)] | Annotated[list[Part], Field(max_length=MOST_PARTS)]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The content with places for images (core.formats.PLACES)."""
        place = PLACES["images"]
        said = (part.text.translate(NO_PLACES) if isinstance(part, TextPart) else place for part in self.parts)
        return "".join(said)


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. A field that we would not act on is refused, not passed over."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    temperature: float = Field(0.7, ge=0, le=5)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000)
    max_tokens: int = Field(256, ge=1, le=32_768)
    seed: int = Field(42, ge=0, le=2**31 - 1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    stream: bool = False

    @property
    def urls(self) -> list[tuple[str, str]]:
        """(where it stands, URL) of each image."""
        return [
            (f"messages.{number}.content.{at}.image_url.url", part.image_url.url)
            for number, message in enumerate(self.messages)
            for at, part in enumerate(message.parts)
            if isinstance(part, ImagePart)
        ]

    @property
    def generation(self) -> Generation:
        return Generation(max_new_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p,
                          top_k=self.top_k, repetition_penalty=self.repetition_penalty, seed=self.seed)  # fmt: skip


def error_object(error: InputError) -> dict[str, Any]:
    """Return the error as OpenAI writes it, with the parameters of the code besides."""
    return {
        "error": {
            "message": str(error.problems[0]),
            "type": "invalid_request_error",
            "param": error.place or None,
            "code": error.code,
            "params": error.params,
        }
    }


def error_from(body: Any) -> InputError:
    """Return the error that an error object holds; any other answer counts as a server that failed."""
    try:
        error = body["error"]
        return InputError("", problems=(Problem(error["code"], error["param"] or "", error["params"]),))
    except (KeyError, TypeError):
        return InputError("chat.unreachable", what="an answer of another kind")


def completion(id_: str, model: str, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
    """Return a whole answer. finish: stop or length."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"id": id_, "object": "chat.completion", "created": int(time.time()), "model": model, "choices": [choice],
            "usage": usage}  # fmt: skip


def chunk(id_: str, model: str, text: str | None, finish: str | None = None) -> bytes:
    """Return one piece of a streamed answer as a server-sent event; the last one has no text and tells the end."""
    choice = {"index": 0, "delta": {} if text is None else {"role": "assistant", "content": text},
              "finish_reason": finish}  # fmt: skip
    return sse({"id": id_, "object": "chat.completion.chunk", "created": int(time.time()), "model": model,
                "choices": [choice]})  # fmt: skip


def sse(value: Any) -> bytes:
    """Return a server-sent event with a JSON value."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
