"""Browsers and a small board behind the guard, for the tests of both."""

from fastapi import FastAPI, Request, WebSocket
from starlette.testclient import TestClient

from app.guard import Guard, allowed_hosts
from app.sessions import Sessions

ADDRESS = "http://127.0.0.1:7860"
PASSWORD = "correct horse battery"
COOKIE = "tuneboard_7860"
HTML = {"accept": "text/html"}


class Clock:
    """A time that stands still until a test moves it."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def small_board() -> FastAPI:
    board = FastAPI()

    @board.api_route("/echo", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def echo(request: Request):
        return {"bytes": len(await request.body()), "query": request.url.query, "headers": dict(request.headers)}

    @board.get("/")
    def home(request: Request):
        return {"query": request.url.query}

    @board.post("/parsed")
    def parsed(body: dict):
        return body

    @board.websocket("/live")
    async def live(socket: WebSocket):
        await socket.accept()
        await socket.close()

    return board


def sessions(secret: bytes = b"s" * 32, **settings) -> Sessions:
    return Sessions(secret, ADDRESS, **{"on_new_link": lambda link: None, **settings})


def visitor(door: Sessions, board=None, **settings) -> TestClient:
    """A browser that has not signed in."""
    guard = Guard(board or small_board(), hosts=allowed_hosts(7860), sessions=door)
    return TestClient(guard, base_url=ADDRESS, follow_redirects=False, **settings)


def member(board=None) -> TestClient:
    """A browser that opened the link."""
    door = sessions()
    client = visitor(door, board)
    client.get(door.link())
    return client
