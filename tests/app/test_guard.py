"""The guard: who reaches the board, from where, with what, and how a browser is let in."""

import os
import re
from itertools import product

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import of gradio, which reads it

import gradio as gr
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.routing import _IncludedRouter
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from app.guard import BODY_LIMIT, FORM_LIMIT, UPLOAD_LIMIT, Guard, allowed_hosts, is_loopback
from app.sessions import COOKIE_AGE, Sessions, load_secret

ADDRESS = "http://127.0.0.1:7860"
PASSWORD = "correct horse battery"
COOKIE = "tuneboard_7860"
LIVE = "ws://127.0.0.1:7860/live"  # whole, as the test client knows no base address for these
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
    assert {("POST", "/gradio_api/upload"), ("GET", "/config"), ("GET", "/docs"), ("POST", "/gradio_api/cancel")} < all_routes
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


# The link


def test_the_link_opens_once_and_a_fresh_one_is_handed_out():
    links = []
    door = sessions(on_new_link=links.append)
    first = door.link()
    client = visitor(door)
    answer = client.get(f"{first}&run=a%26b")
    assert answer.status_code == 200 and 'content="0;url=./?run=a%26b"' in answer.text
    assert first.partition("=")[2] not in answer.text
    assert client.get("/?run=1").json() == {"query": "run=1"}

    assert visitor(door).get(first).status_code == 401
    assert links == [door.link()] and links[0] != first
    assert visitor(door).get(links[0]).status_code == 200


def test_the_cookie_is_kept_from_scripts_and_other_sites():
    def flags(door: Sessions) -> set[str]:
        set_cookie = visitor(door).get(door.link(), headers={"host": "127.0.0.1:7860"}).headers["set-cookie"]
        return {part.partition("=")[0].strip().lower() for part in set_cookie.split(";")[1:]} | {set_cookie[-15:].lower()}

    plain = flags(sessions())
    assert {"httponly", "samesite=strict", "path", "max-age"} <= plain and "secure" not in plain
    secure = Sessions(b"s" * 32, "https://127.0.0.1:7860", lambda link: None)
    secure_cookie = visitor(secure).get(f"/?token={secure.token}").headers["set-cookie"]
    assert "Secure" in secure_cookie


@pytest.mark.parametrize("token", ["", "wrong", "é", "%00", "a" * 5000])
def test_a_wrong_token_opens_nothing(token):
    door = sessions()
    answer = visitor(door).get(f"/?token={token}", headers=HTML)
    assert answer.status_code == 401 and "set-cookie" not in answer.headers


def test_a_preview_does_not_spend_the_link():
    door = sessions()
    client = visitor(door)
    assert client.head(door.link()).status_code == 401
    assert client.get(door.link(), headers={"sec-purpose": "prefetch"}).status_code == 401
    assert client.get(door.link()).status_code == 200


def test_a_known_browser_does_not_spend_the_link():
    door = sessions()
    client = visitor(door)
    client.get(door.link())
    second = door.link()
    assert "refresh" in client.get(f"{second}&run=1").text
    assert door.link() == second


def test_the_token_is_gone_from_what_the_server_logs():
    door = sessions()
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": f"run=1&token={door.token}".encode()}
    guard = Guard(small_board(), hosts=allowed_hosts(7860), sessions=door)
    seen = []

    async def outer(inner, receive, send):  # stands for uvicorn, which logs the scope that it passed down
        await guard(inner, receive, send)
        seen.append(inner["query_string"])

    client = TestClient(outer, base_url=ADDRESS)
    client.get(f"/?{scope['query_string'].decode()}")
    assert seen[0] == b"run=1"


# The cookie


def cookie_of(door: Sessions) -> dict[str, str]:
    client = visitor(door)
    client.get(door.link())
    return {COOKIE: client.cookies[COOKIE]}


def test_a_cookie_survives_a_restart_with_the_same_secret(tmp_path):
    cookies = cookie_of(sessions(load_secret(tmp_path / "secret")))
    assert visitor(sessions(load_secret(tmp_path / "secret")), cookies=cookies).get("/echo").status_code == 200
    assert visitor(sessions(load_secret(tmp_path / "other")), cookies=cookies).get("/echo").status_code == 401
    assert visitor(sessions(load_secret(tmp_path / "secret"), password=PASSWORD), cookies=cookies).get("/echo").status_code == 401


def test_a_cookie_grows_old():
    clock = Clock()
    door = sessions(clock=clock)
    client = visitor(door)
    client.get(door.link())
    clock.now += COOKIE_AGE - 1
    assert client.get("/echo", headers={"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}).status_code == 200
    clock.now += 1
    assert client.get("/echo").status_code == 401


def test_forged_cookies_are_refused():
    content, _, signature = cookie_of(sessions())[COOKIE].rpartition(".")
    issued, _, nonce = content.partition(".")
    for value in ("", ".", "..", content, f"{content}.", f"{int(issued) + 1}.{nonce}.{signature}", f"x.{signature}", "é.é"):
        headers = [(b"cookie", f"{COOKIE}={value}".encode())]
        assert visitor(sessions()).get("/echo", headers=headers).status_code == 401, value


def test_an_odd_cookie_of_another_program_does_no_harm():
    value = cookie_of(sessions())[COOKIE]
    headers = {"cookie": f'a={{"b": [1]}}; ="; {COOKIE}={value}; x@y'}
    assert visitor(sessions()).get("/echo", headers=headers).status_code == 200


def test_the_secret_is_for_its_owner_only(tmp_path):
    path = tmp_path / "secret"
    key = load_secret(path)
    assert len(key) == 32 and path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(key[:8])  # cut off by a crash
    assert load_secret(path) != key and len(load_secret(path)) == 32
    assert list(tmp_path.iterdir()) == [path]


# The password


def test_the_password_opens_the_board():
    client = visitor(sessions(password=PASSWORD))
    page = client.get("/?run=a%22b", headers={**HTML, "accept-language": "zh"})
    assert 'lang="zh"' in page.text and 'value="run=a%22b"' in page.text
    answer = client.post("/signin", data={"password": PASSWORD, "query": "run=a%22b"})
    assert (answer.status_code, answer.headers["location"]) == (303, "./?run=a%22b")
    assert client.get("/echo").status_code == 200


@pytest.mark.parametrize("query", ["//evil.example", "a=b\r\nx-evil: 1", "a=\"><script>", "https://evil.example/?a=b"])
def test_where_to_go_after_sign_in_stays_on_the_board(query):
    client = visitor(sessions(password=PASSWORD))
    answer = client.post("/signin", data={"password": PASSWORD, "query": query})
    assert re.fullmatch(r"\./(\?[-\w%.=&+]+)?", answer.headers["location"]) and "x-evil" not in answer.headers


def test_wrong_passwords_must_wait():
    clock = Clock()
    client = visitor(sessions(password=PASSWORD, clock=clock))
    for _ in range(5):
        assert client.post("/signin", data={"password": "wrong"}).status_code == 401
        clock.now += 2
    blocked = client.post("/signin", data={"password": PASSWORD})
    assert (blocked.status_code, blocked.headers["retry-after"]) == (429, "50")
    assert "50 seconds" in blocked.text
    clock.now += 50
    assert client.post("/signin", data={"password": PASSWORD}).status_code == 303


def test_the_back_off_is_by_address():
    door = sessions(password=PASSWORD)
    for _ in range(6):
        visitor(door).post("/signin", data={"password": "wrong"})
    assert visitor(door).post("/signin", data={"password": PASSWORD}).status_code == 429
    assert visitor(door, client=("192.0.2.7", 1)).post("/signin", data={"password": PASSWORD}).status_code == 303


def test_a_good_password_forgives():
    client = visitor(sessions(password=PASSWORD))
    for password in ["wrong"] * 4 + [PASSWORD] + ["wrong"] * 5:
        status = client.post("/signin", data={"password": password}).status_code
        assert status == (303 if password == PASSWORD else 401)


def test_tries_are_counted_before_they_are_checked():
    door = sessions(password=PASSWORD, clock=Clock())
    assert [door.wait("a") for _ in range(6)] == [0] * 5 + [60]


def test_old_failures_are_forgotten():
    clock = Clock()
    door = sessions(password=PASSWORD, clock=clock)
    for n in range(100):
        door.wait(f"192.0.2.{n}")
    clock.now += 61
    door.wait("192.0.2.200")
    assert list(door.failures) == ["192.0.2.200"]


def test_a_short_password_is_refused():
    with pytest.raises(ValueError, match="12"):
        sessions(password="elevenchars")


# Sizes


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [("/echo", BODY_LIMIT, 200), ("/echo", BODY_LIMIT + 1, 413), ("/gradio_api/upload", UPLOAD_LIMIT, 404),
     ("/gradio_api/upload", UPLOAD_LIMIT + 1, 413), ("/gradio_api/upload/", BODY_LIMIT + 1, 413), ("/signin", FORM_LIMIT + 1, 413),
     ("/echo", "-1", 400), ("/echo", "1e9", 400), ("/echo", "²", 400)],
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


def test_headers_of_every_answer(gradio_board):
    client = member(gradio_board)
    for path, headers in [("/", HTML), ("/config", {}), ("/nowhere", {}), ("/", {"host": "evil.example"})]:
        answer = client.get(path, headers=headers)
        snapshot = {name: answer.headers.get(name) for name in SNAPSHOT}
        assert snapshot == SNAPSHOT, path
        assert answer.headers.get("cache-control") == ("no-store" if headers == HTML else None)


SNAPSHOT = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
