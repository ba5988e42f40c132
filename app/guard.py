"""The outermost ASGI layer: which hosts, origins, methods and sizes pass, and who is signed in.

A browser is let in by the one-time link printed in the terminal or by the password, and then known by a signed cookie.
Forwarded headers are never trusted: they are taken off before the board sees them.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from html import escape
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.i18n import pick, tr
from app.sessions import Sessions

CLOSED = ("/openapi.json", "/docs", "/redoc")
"""What gradio would tell of itself."""
METHODS = ("GET", "HEAD", "POST")  # all that gradio and the board use; a preflight is never our own page
SAFE = ("GET", "HEAD")
MIB = 2**20
UPLOAD, UPLOAD_LIMIT, BODY_LIMIT, FORM_LIMIT = "/gradio_api/upload", 512 * MIB, 8 * MIB, 4096

# Gradio writes inline scripts and styles and compiles templates, and shows previews from blob: and data: addresses.
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # under no-referrer a browser posts our own sign-in form with "Origin: null"
    "cross-origin-opener-policy": "same-origin",
}

STYLE = """:root{color-scheme:light dark;--paper:#fafaf8;--card:#fff;--ink:#0b1220;--line:#79818d;--accent:#0f766e;
--on:#fff;--error:#b42318}
@media(prefers-color-scheme:dark){:root{--paper:#0e1116;--card:#161b22;--ink:#e6e8eb;--line:#6b7480;--accent:#2dd4bf;
--on:#06201c;--error:#ff9a8f}}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,"Noto Sans SC","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
main{box-sizing:border-box;width:min(400px,100vw - 32px);padding:24px;background:var(--card);border-radius:8px}
h1{margin:0 0 8px;font-size:24px;font-weight:600;line-height:1.25}p{margin:0 0 16px}.error{color:var(--error)}
label{display:block;margin-bottom:4px}input,button{box-sizing:border-box;width:100%;font:inherit;padding:8px 12px;
border-radius:8px}input{margin-bottom:16px;border:1px solid var(--line);background:var(--paper);color:var(--ink)}
button{border:0;background:var(--accent);color:var(--on);font-weight:600;cursor:pointer}a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}"""


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, or "" for all interfaces
        return False


def allowed_hosts(port: int, names: Iterable[str] = ()) -> frozenset[str]:
    """The Host headers we answer to: this machine at our port; `names` at our port, the one they bear, or a proxy's."""
    own = {f"{host}:{port}" for host in ("localhost", "127.0.0.1", "[::1]")}
    bare = {host.rsplit(":", 1)[0] for host in own} if port in (80, 443) else set()
    extra = {name.lower() for name in names}
    return frozenset(own | bare | extra | {f"{name}:{port}" for name in extra if urlsplit(f"//{name}").port is None})


class BodyTooLarge(Exception):
    """Raised inside the board's own read when a body grows past its limit."""


class Guard:
    """Wraps the whole board; `hosts` is what `allowed_hosts` returns."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], sessions: Sessions):
        self.app, self.hosts, self.sessions = app, hosts, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        scope["headers"] = [pair for pair in scope["headers"] if not is_forwarded(pair[0])]
        headers = Headers(scope=scope)
        refused = refusal(scope, headers, self.hosts)
        if scope["type"] == "websocket":
            if refused is None and self.sessions.knows(headers):
                return await self.app(scope, receive, send)
            return await send({"type": "websocket.close", "code": 1008})
        if refused is not None:
            return await refused(scope, receive, protect(send))
        await limited(self.door, scope, receive, protect(send))

    async def door(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The board for a browser that we know, for any other the answer on its way in."""
        headers = Headers(scope=scope)
        answer = self.by_link(scope, headers)
        if answer is None and (route(scope), scope["method"]) == ("/signin", "POST"):
            answer = await self.by_password(scope, headers, receive)
        if answer is None and route(scope) == "/healthz":
            answer = PlainTextResponse("ok")
        if answer is None and not self.sessions.knows(headers):
            answer = self.stranger(scope, headers)
        if answer is None and route(scope) in CLOSED:
            answer = JSONResponse({"error": "not_found"}, 404)
        await (answer or self.app)(scope, receive, send)

    def by_link(self, scope: Scope, headers: Headers) -> Response | None:
        """The page that goes on to the board, if the link was opened; None for any other request."""
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        token = dict(query).get("token")
        if route(scope) != "/" or token is None:
            return None
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        scope["query_string"] = rest.encode()  # the server writes this very scope to its log
        # A link that is prefetched or previewed must not be used up before its reader clicks on it.
        if scope["method"] != "GET" or "sec-purpose" in headers:
            return None
        onward = onward_page(pick(headers.get("accept-language")), rest)
        if self.sessions.knows(headers):
            return onward
        return self.sessions.let_in(onward) if self.sessions.spend(token) else None

    async def by_password(self, scope: Scope, headers: Headers, receive: Receive) -> Response | None:
        """The answer to a posted password: the board, the page again, or a pause. None if no password is set."""
        if self.sessions.password is None:
            return None
        body = (await Request(scope, receive).body()).decode("latin-1")
        posted = dict(parse_qsl(body))
        query = urlencode(parse_qsl(posted.get("query", "")))
        client = scope["client"][0] if scope["client"] else ""
        pause = self.sessions.wait(client)
        if pause:
            page = self.page(headers, 429, query, tr(pick(headers.get("accept-language")), "ui.signin.many", n=pause))
            page.headers["retry-after"] = str(pause)
            return page
        if not await asyncio.to_thread(self.sessions.accepts, posted.get("password", "")):
            return self.page(headers, 401, query, tr(pick(headers.get("accept-language")), "ui.signin.wrong"))
        self.sessions.forgive(client)
        return self.sessions.let_in(RedirectResponse(f"./?{query}" if query else "./", 303))

    def stranger(self, scope: Scope, headers: Headers) -> Response:
        """401: the sign-in page for a reader, JSON for a program."""
        if scope["method"] in SAFE and "text/html" in headers.get("accept", ""):
            return self.page(headers, 401, scope["query_string"].decode("latin-1"))
        return JSONResponse({"error": "sign_in_required"}, 401)

    def page(self, headers: Headers, status: int, query: str, error: str = "") -> Response:
        """The sign-in page in the reader's language; `query` is what to open afterwards."""
        lang = pick(headers.get("accept-language"))
        if self.sessions.password is None:
            return small_page(lang, tr(lang, "ui.signin.title"), f"<p>{tr(lang, 'ui.signin.link')}</p>", status)
        alert = f'<p class="error" role="alert">{error}</p>' if error else ""
        form = f"""<p>{tr(lang, "ui.signin.lead")}</p>{alert}<form method="post" action="signin">
<input type="hidden" name="query" value="{escape(query)}"><label for="password">{tr(lang, "ui.signin.password")}</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>{tr(lang, "ui.signin.button")}</button></form>"""
        return small_page(lang, tr(lang, "ui.signin.title"), form, status)


def route(scope: Scope) -> str:
    """The path below the root where a proxy may have put the board."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def is_forwarded(name: bytes) -> bool:
    return name == b"forwarded" or name.startswith(b"x-forwarded-")


def refusal(scope: Scope, headers: Headers, hosts: frozenset[str]) -> Response | None:
    """The refusal of a request that is none of our page's, or None. `scope` is of http or websocket."""
    named = [host.lower() for host in headers.getlist("host")]
    if len(named) != 1 or named[0] not in hosts:
        return JSONResponse({"error": "host_not_allowed"}, 403)
    origins = headers.getlist("origin")
    if any(origin not in (f"http://{named[0]}", f"https://{named[0]}") for origin in origins):
        return JSONResponse({"error": "origin_not_allowed"}, 403)
    method = scope.get("method", "")
    # A page of another site may link to the board. It may not post to it, embed it or read from it.
    linked = method in SAFE and route(scope) == "/" and headers.get("sec-fetch-mode") == "navigate"
    linked = linked and headers.get("sec-fetch-dest") == "document"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not linked:
        return JSONResponse({"error": "cross_site_request"}, 403)
    if scope["type"] == "http" and method not in METHODS:
        return JSONResponse({"error": "method_not_allowed"}, 405, {"allow": ", ".join(METHODS)})
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return JSONResponse({"error": "bad_content_length"}, 400)
    return too_large() if int(length) > limit_of(route(scope)) else None


def limit_of(path: str) -> int:
    """The bytes that a body sent to `path` may have."""
    return {UPLOAD: UPLOAD_LIMIT, "/signin": FORM_LIMIT}.get(path, BODY_LIMIT)


def too_large() -> Response:
    return JSONResponse({"error": "body_too_large"}, 413)


async def limited(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run `app` with its body counted; one that grows too large is answered 413, whatever the app makes of it."""
    limit, seen, started = limit_of(route(scope)), 0, False

    async def count() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise BodyTooLarge
        return message

    async def pass_on(message: Message) -> None:
        nonlocal started
        if seen > limit and not started:
            return  # the app's own answer to our exception, such as FastAPI's 400
        started = True
        await send(message)

    with suppress(BodyTooLarge):
        await app(scope, count, pass_on)
    if seen > limit and not started:
        await too_large()(scope, receive, send)


def protect(send: Send) -> Send:
    """`send` that adds our headers to each response."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            headers.update(HEADERS)
            if headers.get("content-type", "").startswith("text/html"):
                headers["cache-control"] = "no-store"
            message = {**message, "headers": headers.raw}
        await send(message)

    return add


def onward_page(lang: str, query: str) -> HTMLResponse:
    """A page that goes on to the board without the token.

    Not a redirect: if the link was clicked on another site, a browser holds a Strict cookie back along the whole chain.
    """
    target = escape(f"./?{query}" if query else "./")
    text = f'<p><a href="{target}">{tr(lang, "ui.signin.onward")}</a></p>'
    refresh = f'<meta http-equiv="refresh" content="0;url={target}">'
    return small_page(lang, tr(lang, "ui.signin.welcome"), text, 200, refresh)


def small_page(lang: str, title: str, body: str, status: int, head: str = "") -> HTMLResponse:
    """A small page of our own that needs no other file."""
    html = f"""<!doctype html><html lang="{lang}"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">{head}
<style>{STYLE}</style></head><body><main><h1>{title}</h1>{body}</main></body></html>"""
    return HTMLResponse(html, status)
