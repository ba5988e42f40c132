"""Sign-in: the link, the cookie, the password."""

import re

import pytest
from starlette.testclient import TestClient

from app.guard import Guard, allowed_hosts
from app.sessions import COOKIE_AGE, Sessions, load_secret
from tests.app.visitors import ADDRESS, COOKIE, HTML, PASSWORD, Clock, sessions, small_board, visitor

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
    def flags(address: str) -> set[str]:
        door = Sessions(b"s" * 32, address, lambda link: None)
        cookie = visitor(door).get(f"/?token={door.token}").headers["set-cookie"]
        return {part.strip().lower() for part in cookie.split(";")[1:]}

    plain = {"httponly", "samesite=strict", "path=/", f"max-age={COOKIE_AGE}"}
    assert flags(ADDRESS) == plain
    assert flags("https://board.example") == plain | {"secure"}


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
    guard = Guard(small_board(), hosts=allowed_hosts(7860), sessions=door)
    logged = []

    async def server(scope, receive, send):  # like uvicorn, which logs the scope that it passed down
        await guard(scope, receive, send)
        logged.append(scope["query_string"])

    client = TestClient(server, base_url=ADDRESS)
    client.get(f"/?run=1&token={door.token}")
    client.get("/?run=1&token=wrong")
    assert logged == [b"run=1", b"run=1"]


# The cookie


def cookie_of(door: Sessions) -> dict[str, str]:
    client = visitor(door)
    client.get(door.link())
    return {COOKIE: client.cookies[COOKIE]}


def test_a_cookie_survives_a_restart_with_the_same_secret(tmp_path):
    cookies = cookie_of(sessions(load_secret(tmp_path / "secret")))

    def status(secret: str, **settings) -> int:
        door = sessions(load_secret(tmp_path / secret), **settings)
        return visitor(door, cookies=cookies).get("/echo").status_code

    assert status("secret") == 200
    assert status("other") == 401
    assert status("secret", password=PASSWORD) == 401  # a changed password signs everybody out


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
    younger = f"{int(issued) + 1}.{nonce}.{signature}"
    for value in ("", ".", "..", content, f"{content}.", younger, f"x.{signature}", "é.é"):
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


@pytest.mark.parametrize("query", ["//evil.example", "a=b\r\nx-evil: 1", 'a="><script>', "https://evil.example/?a=b"])
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
