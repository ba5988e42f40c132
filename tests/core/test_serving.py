"""The chat server over real HTTP: the same answers as the plain models, streamed, stopped, refused."""

import contextlib
import json
import stat
import threading
import time

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from core.config import resolve
from core.errors import InputError, Stopped
from core.models.answering import encode, render
from core.serving.answerer import LONGEST_QUEUE
from core.serving.client import Endpoint, endpoint, stream
from core.serving.server import serve
from tests.core.models_fixtures import ASK, context, make_adapter, make_model, make_tokenizer, told

GREEDY = {"messages": ASK, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    base = make_model(room / "base", max_position_embeddings=2048)
    make_adapter(room / "runs" / "tuned" / "adapter", base)
    return room


@contextlib.contextmanager
def served(room, name):
    """Give (context, endpoint) of a running server; at the end it is stopped and must have stopped in order."""
    job = resolve({"model": {"path": "base"}, "tuned": ["tuned"], "hardware": {"device": "cpu"}}, job="serving")
    with context(room, name) as at:
        ended = []

        def run():
            try:
                serve(job, at)
            except Stopped as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not (there := endpoint(at.folder)) and thread.is_alive():
            time.sleep(0.02)
        try:
            yield at, there
        finally:
            at.stop.set()
            thread.join(20)
            assert not thread.is_alive() and len(ended) == 1 and endpoint(at.folder) is None


@pytest.fixture(scope="module")
def server(room):
    with served(room, "chat") as (_, there):
        yield there


def post(server, **body):
    headers = {"Authorization": f"Bearer {server.token}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30, trust_env=False)


def text(response):
    return response.json()["choices"][0]["message"]["content"]


def endless(server, **more):
    """A request whose answer is long: at a high temperature the end token is rare."""
    return {"model": "base", "messages": ASK, "temperature": 5, "max_tokens": 1500, "seed": 3, **more}


def test_endpoint_is_private_and_told(room):
    with served(room, "private") as (at, there):
        assert stat.S_IMODE((at.folder / "endpoint.json").stat().st_mode) == 0o600
        assert there.url.startswith("http://127.0.0.1:") and there.models == ("base", "tuned")
        assert told(at, "phase")[-1]["phase"] == "ready"
        assert there.token not in (at.folder / "events.jsonl").read_text()


def test_answers_are_those_of_the_plain_models(room, server):
    tokenizer = make_tokenizer()
    ids = torch.tensor(encode(tokenizer, [render(tokenizer, ASK)]))
    base = AutoModelForCausalLM.from_pretrained(room / "base")
    plain = base.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    tuned = PeftModel.from_pretrained(base, room / "runs" / "tuned" / "adapter").eval()
    adapted = tuned.generate(input_ids=ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    for name, out in (("base", plain), ("tuned", adapted), ("base", plain)):
        response = post(server, model=name, **GREEDY)
        wanted = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert text(response) == wanted
        sizes = {"prompt_tokens": len(ids[0]), "completion_tokens": len(out[0]) - len(ids[0])}
        assert response.json()["usage"] == sizes | {"total_tokens": len(out[0])}
        assert "".join(stream(server, {"model": name, **GREEDY})) == wanted
    assert text(post(server, model="base", **GREEDY)) != text(post(server, model="tuned", **GREEDY))


def test_same_seed_same_text(server):
    draw = {"model": "tuned", "messages": ASK, "temperature": 1.0, "max_tokens": 30}
    assert text(post(server, **draw, seed=1)) == text(post(server, **draw, seed=1))
    assert text(post(server, **draw, seed=1)) == "".join(stream(server, {**draw, "seed": 1}))
    assert text(post(server, **draw, seed=1)) != text(post(server, **draw, seed=2))


def test_shapes_are_openais(server):
    headers = {"Authorization": f"Bearer {server.token}"}
    models = httpx.get(f"{server.url}/v1/models", headers=headers, trust_env=False).json()
    assert models["object"] == "list" and [model["id"] for model in models["data"]] == ["base", "tuned"]
    whole = post(server, **endless(server, max_tokens=3)).json()
    assert whole["object"] == "chat.completion" and whole["choices"][0]["finish_reason"] == "length"
    lines = post(server, model="base", stream=True, **GREEDY).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] in ("stop", "length")


@pytest.mark.parametrize("change,status,code", [
    ({"model": "gpt-4"}, 404, "chat.unknown_model"),
    ({"messages": [{"role": "user", "content": "x" * 3000}]}, 400, "chat.too_long"),
    ({"messages": []}, 400, "chat.invalid"),
    ({"messages": [{"role": "root", "content": "x"}]}, 400, "chat.invalid"),
    ({"temperature": -1}, 400, "chat.invalid"),
    ({"max_tokens": 0}, 400, "chat.invalid"),
    ({"tools": []}, 400, "chat.invalid"),
])  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
def test_refused(server, change, status, code, streamed):
    body = {"model": "base", **GREEDY, **change, "stream": streamed}
    response = post(server, **body)
    assert response.status_code == status and response.json()["error"]["code"] == code
    assert "{" not in response.json()["error"]["message"]
    with pytest.raises(InputError) as caught:
        list(stream(server, body))
    assert caught.value.code == code


def test_too_long_a_prompt_is_refused_with_numbers(server):
    messages = [{"role": "user", "content": "x" * 3000}]
    message = post(server, model="base", messages=messages).json()["error"]["message"]
    assert "3002" in message and "2048" in message


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/docs", "/openapi.json", "/"])
@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic x", "Bearer é"])
def test_no_token_no_answer(server, path, given):
    headers = {"Authorization": given.encode()} if given else {}
    assert httpx.get(server.url + path, headers=headers, trust_env=False).status_code == 401
    assert httpx.post(server.url + path, json={}, headers=headers, trust_env=False).status_code == 401


def test_client_without_server_or_token(server, tmp_path):
    assert endpoint(tmp_path) is None
    with pytest.raises(InputError) as caught:
        list(stream(Endpoint(server.url, "wrong", ()), {"model": "base", **GREEDY}))
    assert caught.value.code == "chat.unauthorized"
    with pytest.raises(InputError) as caught:
        list(stream(Endpoint("http://127.0.0.1:9", "x", ()), {"model": "base", **GREEDY}))
    assert caught.value.code == "chat.unreachable"


def test_first_piece_comes_before_the_answer_is_done(server):
    began = time.monotonic()
    pieces = stream(server, endless(server, max_tokens=300))
    next(pieces)
    first = time.monotonic() - began
    list(pieces)
    assert first < (time.monotonic() - began) / 4


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_frees_the_model_within_a_second(server, streamed):
    with contextlib.suppress(httpx.ReadTimeout):
        if streamed:
            pieces = stream(server, endless(server))
            next(pieces)
            pieces.close()
        else:
            headers = {"Authorization": f"Bearer {server.token}"}
            httpx.post(f"{server.url}/v1/chat/completions", json=endless(server), headers=headers, timeout=0.5,
                       trust_env=False)  # fmt: skip
    began = time.monotonic()
    post(server, model="base", messages=ASK, temperature=0, max_tokens=1)
    assert time.monotonic() - began < 1


def test_many_at_once_are_answered_each_with_its_own_or_told_to_wait(server):
    alone = {name: text(post(server, model=name, **GREEDY)) for name in ("base", "tuned")}
    found = []

    def ask(number):
        name = ("base", "tuned")[number % 2]
        response = post(server, model=name, **GREEDY)
        found.append((name, response))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(LONGEST_QUEUE + 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == LONGEST_QUEUE + 8
    for name, response in found:
        if response.status_code == 429:
            assert response.headers["Retry-After"] and response.json()["error"]["code"] == "chat.busy"
        else:
            assert text(response) == alone[name]


def test_stop_during_an_answer_ends_within_a_second(room):
    with served(room, "stopped") as (at, there):
        pieces = stream(there, endless(there))
        next(pieces)
        began = time.monotonic()
        at.stop.set()
        with contextlib.suppress(InputError):
            list(pieces)
        while endpoint(at.folder):
            time.sleep(0.02)
        assert time.monotonic() - began < 1
