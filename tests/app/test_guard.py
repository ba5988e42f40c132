"""The guard: from where, with what and how large a request reaches the board."""

import os
import re
from itertools import product

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import of gradio, which reads it

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.routing import _IncludedRouter
from starlette.routing import Mount
from starlette.websockets import WebSocketDisconnect

from app.guard import BODY_LIMIT, FORM_LIMIT, UPLOAD_LIMIT, allowed_hosts, is_loopback
from tests.app.visitors import COOKIE, HTML, PASSWORD, member, sessions, visitor

LIVE = "ws://127.0.0.1:7860/live"  # whole, as the test client knows no base address for these

# Where a request comes from


def expected(host: str, origin: str | None, site: str | None, method: str) -> int:
    if host not in ("127.0.0.1:7860", "LOCALHOST:7860", "[::1]:7860"):
        return 403
    if origin is not None and origin != f"http://{host.lower()}":
        return 403
    if site in ("cross-site", "same-site"):
        return 403
    return 200 if method in ("GET", "HEAD", "POST") else 405


HOSTS = ["127.0.0.1:7860", "LOCALHOST:7860", "[::1]:7860", "127.0.0.1", "evil.example:7860", "127.0.0.1:7861", ""]
ORIGINS = [None, "http://127.0.0.1:7860", "http://localhost:7860", "http://[::1]:7860", "http://evil.example", "null"]
SITES = [None, "none", "same-origin", "same-site", "cross-site"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_host_origin_and_site(method):
    client = member()
    client.headers["cookie"] = f"{COOKIE}={client.cookies[COOKIE]}"  # its cookie jar is for one host only
    client.cookies.clear()
    answers, wanted = {}, {}
    for case in product(HOSTS, ORIGINS, SITES):
        host, origin, site = case
        headers = {"host": host, "origin": origin, "sec-fetch-site": site}
        present = {name: value for name, value in headers.items() if value is not None}
        answers[case] = client.request(method, "/echo", headers=present).status_code
        wanted[case] = expected(host, origin, site, method)
    assert answers == wanted


def test_a_second_host_header_is_refused():
    headers = [("host", "127.0.0.1:7860"), ("host", "evil.example")]
    assert visitor(sessions()).get("/healthz", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("path", "mode", "dest", "status"),
    [("/", "navigate", "document", 200), ("/", "navigate", "iframe", 403), ("/", "no-cors", "image", 403),
     ("/", "cors", "empty", 403), ("/echo", "navigate", "document", 403)],
)  # fmt: skip
def test_another_site_may_only_link_to_the_page(path, mode, dest, status):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode, "sec-fetch-dest": dest}
    assert member().get(path, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "opens"),
    [({}, True), ({"origin": "http://127.0.0.1:7860"}, True), ({"origin": "http://evil.example"}, False),
     ({"host": "evil.example"}, False), ({"sec-fetch-site": "cross-site"}, False), ({"cookie": "x=y"}, False)],
)  # fmt: skip
def test_websockets_obey_the_same_rules(headers, opens):
    client = member()
    if opens:
        with client.websocket_connect(LIVE, headers=headers):
            return
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(LIVE, headers=headers):
        pass


def test_forwarded_headers_are_taken_off():
    forged = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "forwarded": "host=evil.example"}
    seen = member().get("/echo", headers=forged).json()["headers"]
    assert not set(forged) & set(seen)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("", False),
     ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("localhost.evil.example", False)],
)  # fmt: skip
def test_is_loopback(host, loopback):
    assert is_loopback(host) is loopback


def test_allowed_hosts():
    assert allowed_hosts(7860, ["Board.Example", "proxy.example:8443"]) == {
        "localhost:7860", "127.0.0.1:7860", "[::1]:7860", "board.example", "board.example:7860", "proxy.example:8443",
    }  # fmt: skip
    assert {"localhost", "[::1]", "[::1]:80"} < allowed_hosts(80)


# Every route is behind the door


def routes(entries, prefix: str = "") -> set[tuple[str, str]]:
    """Each (method, path) of these routes and of all that is mounted or included in them, with x for parameters."""
    found = set()
    for entry in entries:
        if isinstance(entry, Mount):
            found |= routes(entry.app.routes, prefix + entry.path)
        elif isinstance(entry, _IncludedRouter):  # FastAPI >= 0.165 does not list the routes of a router itself
            found |= routes(entry.effective_candidates(), prefix)
        else:
            found |= {(method, prefix + re.sub(r"{[^}]*}", "x", entry.path)) for method in entry.methods}
    return found


@pytest.fixture
def gradio_board() -> FastAPI:
    with gr.Blocks() as blocks:
        box = gr.Textbox()
        gr.Button().click(lambda text: text, box, box)
    return gr.mount_gradio_app(FastAPI(), blocks, "/", run_history=False)


def test_every_route_answers_401_without_a_cookie(gradio_board):
    all_routes = routes(gradio_board.routes)
    some = {("POST", "/gradio_api/upload"), ("POST", "/gradio_api/cancel"), ("GET", "/config"), ("GET", "/docs")}
    assert some < all_routes  # the walk reaches what is mounted and included
    reached = []

    async def board(scope, receive, send):
        reached.append(scope["path"])

    client = visitor(sessions(), board)
    answers = {client.request(method, path).status_code for method, path in all_routes}
    assert (answers, reached) == ({401}, [])


def test_the_real_board_opens_with_a_cookie(gradio_board):
    client = member(gradio_board)
    assert client.get("/config").json()["version"] == gr.__version__
    assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)


def test_health_needs_no_cookie_but_a_host():
    client = visitor(sessions())
    assert client.get("/healthz").text == "ok"
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 403


def test_a_stranger_gets_a_page_or_json():
    client = visitor(sessions())
    page = client.get("/", headers={**HTML, "accept-language": "ru"})
    assert (page.status_code, page.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert 'lang="ru"' in page.text and "терминал" in page.text and "<form" not in page.text
    assert client.get("/echo").json() == {"error": "sign_in_required"}
    assert client.post("/signin", data={"password": ""}).status_code == 401


# Sizes


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [("/echo", BODY_LIMIT, 200), ("/echo", BODY_LIMIT + 1, 413), ("/gradio_api/upload", UPLOAD_LIMIT, 404),
     ("/gradio_api/upload", UPLOAD_LIMIT + 1, 413), ("/gradio_api/upload/", BODY_LIMIT + 1, 413),
     ("/signin", FORM_LIMIT + 1, 413), ("/echo", "-1", 400), ("/echo", "1e9", 400), ("/echo", "²", 400)],
)  # fmt: skip
def test_announced_sizes(path, length, status):
    headers = [(b"content-length", str(length).encode())]
    assert member().post(path, headers=headers, content=b"small").status_code == status


@pytest.mark.parametrize("path", ["/echo", "/parsed", "/signin"])
def test_sizes_are_counted_while_they_stream(path):
    block = b" " * 2**16

    def endless():
        for _ in range(BODY_LIMIT // len(block) + 1):
            yield block

    client = member() if path != "/signin" else visitor(sessions(password=PASSWORD))
    answer = client.post(path, content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (413, {"error": "body_too_large"})


def test_a_streamed_body_within_the_limit_passes():
    answer = member().post("/echo", content=iter([b"x" * 1000] * 100))
    assert answer.json()["bytes"] == 100_000


# Headers


SNAPSHOT = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def test_headers_of_every_answer(gradio_board):
    client = member(gradio_board)
    for path, headers in [("/", HTML), ("/config", {}), ("/nowhere", {}), ("/", {"host": "evil.example"})]:
        answer = client.get(path, headers=headers)
        snapshot = {name: answer.headers.get(name) for name in SNAPSHOT}
        assert snapshot == SNAPSHOT, path
        assert answer.headers.get("cache-control") == ("no-store" if headers == HTML else None)
