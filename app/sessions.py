"""Who may come in: a one-time link, a password with a back-off, and the signed cookie that remembers either."""

import hashlib
import hmac
import math
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

MIN_PASSWORD = 12  # characters
COOKIE_AGE = 30 * 24 * 3600  # seconds
FAILURES = 5  # wrong passwords that one address may send ...
WINDOW = 60.0  # ... in this many seconds


def load_secret(path: Path) -> bytes:
    """The 32 bytes that sign our cookies, made at first use in a file that only its owner can read."""
    if path.is_file() and len(key := path.read_bytes()) == 32:  # a shorter one was cut off, and could be guessed
        return key
    key = secrets.token_bytes(32)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
    aside.replace(path)
    return key


class Sessions:
    """The sign-in state of one board. Cookies need no state here: `secret` alone tells a genuine one."""

    def __init__(
        self,
        secret: bytes,
        address: str,
        on_new_link: Callable[[str], None],
        password: str | None = None,
        clock: Callable[[], float] = time.time,
    ):
        """`address` is the root of the board as a browser writes it, such as http://127.0.0.1:7860.

        Raises ValueError if the password is shorter than MIN_PASSWORD.
        """
        if password is not None and len(password) < MIN_PASSWORD:
            raise ValueError(f"the password needs at least {MIN_PASSWORD} characters")
        self.secret, self.address, self.on_new_link, self.clock = secret, address.rstrip("/"), on_new_link, clock
        self.password = None if password is None else self.digest(password)
        # A changed password ends the sessions that the old one opened.
        self.key = hmac.digest(secret, self.password or b"", "sha256")
        self.token = secrets.token_urlsafe(24)
        self.failures: dict[str, list[float]] = {}
        parts = urlsplit(self.address)
        self.secure = parts.scheme == "https"
        self.cookie = f"tuneboard_{parts.port or (443 if self.secure else 80)}"  # browsers share cookies across ports

    def link(self) -> str:
        """The address that lets the next browser in, once."""
        return f"{self.address}/?token={self.token}"

    def spend(self, token: str) -> bool:
        """Whether `token` is that of the link; if so it is used up and a fresh link is handed out."""
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return False
        self.token = secrets.token_urlsafe(24)
        self.on_new_link(self.link())
        return True

    def let_in(self, response: Response) -> Response:
        """`response` with a new session cookie."""
        content = f"{int(self.clock())}.{secrets.token_hex(16)}"
        value = f"{content}.{self.sign(content)}"
        response.set_cookie(self.cookie, value, COOKIE_AGE, secure=self.secure, httponly=True, samesite="strict")
        return response

    def knows(self, headers: Headers) -> bool:
        """Whether a cookie of ours, not too old, came with the request."""
        # Not http.cookies: one odd cookie of another program on this host would make it drop ours.
        value = cookie_parser("; ".join(headers.getlist("cookie"))).get(self.cookie, "")
        content, _, signature = value.rpartition(".")
        if not hmac.compare_digest(self.sign(content).encode(), signature.encode()):
            return False
        return self.clock() - int(content.partition(".")[0]) < COOKIE_AGE

    def sign(self, content: str) -> str:
        return hmac.new(self.key, content.encode(), "sha256").hexdigest()

    def wait(self, client: str) -> int:
        """Seconds until `client` may try a password. 0 lets it try, and counts as a failure until `forgive`.

        Counted beforehand, for a hundred tries sent at once would all pass a check of past failures.
        """
        now = self.clock()
        recent = {who: [at for at in times if now - at < WINDOW] for who, times in self.failures.items()}
        self.failures = {who: times for who, times in recent.items() if times}
        tries = self.failures.setdefault(client, [])
        if len(tries) >= FAILURES:
            return math.ceil(tries[0] + WINDOW - now)
        tries.append(now)
        return 0

    def forgive(self, client: str) -> None:
        """Forget the failures of `client`, who has now sent the password."""
        self.failures.pop(client, None)

    def accepts(self, password: str) -> bool:
        """Whether it is the password. Takes some 50 ms of one core, by intent: call it in a thread."""
        return self.password is not None and hmac.compare_digest(self.digest(password), self.password)

    def digest(self, password: str) -> bytes:
        return hashlib.scrypt(password.encode(), salt=self.secret, n=2**14, r=8, p=1)
