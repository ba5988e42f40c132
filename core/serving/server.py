"""Keep models ready and answer on 127.0.0.1: POST /v1/chat/completions and GET /v1/models, OpenAI's shapes."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import socket
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from core.config import Serving
from core.errors import InputError, Stopped
from core.models.lineup import Lineup
from core.serving.answerer import Answer, Answerer
from core.serving.client import FILE
from core.serving.protocol import STATUS, ChatRequest, chunk, completion, error_object, sse, usage
from core.workspace import Context

GLANCE = 0.2
"""Seconds between two looks whether the client is still there."""


def serve(job: Serving, context: Context) -> dict[str, Any]:
    """Load the models, answer until the job is stopped, then raise Stopped.

    endpoint.json in the run folder (readable by its owner only) tells url, token and models while the server is up.
    """
    context.events.write("phase", phase="load_model", params={"model": job.model.path})
    lineup = Lineup(job.model, job.tuned, context.workspace, job.hardware, context.events)
    answerer, token = Answerer(lineup, context.stop), secrets.token_urlsafe(32)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(answerer, token), log_level="warning", access_log=False))
    # not the main thread: there uvicorn would take the signals, which belong to the worker
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    path = context.folder / FILE
    told = {"url": url, "token": token, "models": list(lineup.names), "sees": lineup.sees}
    _write_private(path, told)
    try:
        context.events.write("phase", phase="ready", params={"models": list(lineup.names)})
        context.stop.wait()
    finally:
        context.stop.set()
        path.unlink(missing_ok=True)
        server.should_exit = True
        answerer.close()
        thread.join()
    raise Stopped("run.stopped")


def application(answerer: Answerer, token: str) -> ASGIApp:
    """Return the app behind its token check."""
    app = FastAPI(openapi_url=None)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "owned_by": "tuneboard"} for name in answerer.lineup.names]
        return {"object": "list", "data": listed}

    @app.post("/v1/chat/completions")
    async def completions(body: ChatRequest, request: Request) -> Response:
        talk = _Talk(answerer, body)
        if body.stream:
            return StreamingResponse(talk.events(), media_type="text/event-stream")
        return await talk.whole(request)

    @app.exception_handler(InputError)
    async def refuse(_: Request, error: InputError) -> JSONResponse:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:]))
        return _refusal(InputError("chat.invalid", place, what=first["msg"]))

    return _Guard(app, token)


class _Talk:
    """One request: the answer grows in the drawing thread and is handed over to the event loop piece by piece."""

    def __init__(self, answerer: Answerer, body: ChatRequest) -> None:
        """Raises InputError when the request is refused."""
        self.body, self.id = body, f"chatcmpl-{uuid.uuid4().hex}"
        self.halt = threading.Event()
        loop, self.pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def give(piece: str | None) -> None:
            loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

        self.future = answerer.begin(body, give, self.halt)
        self.future.add_done_callback(lambda _: give(None))

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the answer as server-sent events; leaving early stops the drawing."""
        try:
            while (piece := await self.pieces.get()) is not None:
                yield chunk(self.id, self.body.model, piece)
            if self.future.cancelled():
                yield sse(error_object(InputError("chat.stopped")))
            elif error := self.future.exception():
                yield sse(error_object(_failure(error)))
            else:
                yield chunk(self.id, self.body.model, None, self.future.result().finish)
                yield b"data: [DONE]\n\n"
        finally:
            self.halt.set()

    async def whole(self, request: Request) -> Response:
        """Return the answer when it is whole; stop drawing it when the client goes away."""
        watch = asyncio.create_task(self._watch(request))
        text = ""
        try:
            while (piece := await self.pieces.get()) is not None:
                text += piece
        finally:
            self.halt.set()
            watch.cancel()
        if self.future.cancelled():
            return _refusal(InputError("chat.stopped"))
        if error := self.future.exception():
            return _refusal(_failure(error), 500)
        answer: Answer = self.future.result()
        counts = usage(answer.prompt_tokens, answer.tokens)
        return JSONResponse(completion(self.id, self.body.model, text, answer.finish, counts))

    async def _watch(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(GLANCE)
        self.halt.set()


class _Guard:
    """Lets in only requests with the bearer token; the outermost layer, so that no route can be without it."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                await _refusal(InputError("chat.unauthorized"))(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _refusal(error: InputError, status: int | None = None) -> JSONResponse:
    headers = {"Retry-After": "5"} if error.code == "chat.busy" else None
    return JSONResponse(error_object(error), status or STATUS.get(error.code, 400), headers)


def _failure(error: BaseException) -> InputError:
    """Return what a client is told when the drawing broke down: no more than its kind."""
    if isinstance(error, InputError):
        return error
    return InputError("chat.failed", what=f"{type(error).__name__}: {error}".splitlines()[0][:200])


def _write_private(path: Path, value: dict[str, Any]) -> None:
    """Write JSON aside, for the owner's eyes only, and rename it into place."""
    aside = path.with_name(path.name + ".tmp")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(value, file)
    aside.replace(path)
