"""What a trained model that sees does afterwards: it is measured, exported, asked; nothing but data: URLs is opened."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from core.config import resolve
from core.errors import InputError, Stopped
from core.evaluation.run import evaluate
from core.export.merge import export
from core.serving.client import Endpoint, endpoint, image_part, stream
from core.serving.server import serve
from tests.conftest import new_run
from tests.core.helpers import train
from tests.core.models_fixtures import context, make_model
from tests.core.seeing import in_parts, make_llava, make_pictures, says
from tests.core.test_vision import conversations

CPU = {"device": "cpu", "threads": 1}
LENGTH = 12


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a LLaVA, pictures, the run `tuned` (LoRA on them) and a model of texts."""
    room = tmp_path_factory.mktemp("room")
    make_llava(room / "base")
    make_pictures(room / "data")
    make_model(room / "texts")
    run = new_run(room / "runs" / "tuned", room / "base", room / "data", "data.train=[colours]", "data.eval_share=0")
    train(run)
    return room


def plain(room: Path, *, tuned: bool) -> tuple[Any, Any]:
    """Return (model, processor) by transformers and peft alone."""
    processor: Any = AutoProcessor.from_pretrained(room / "base")
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    model: Any = LlavaForConditionalGeneration.from_pretrained(room / "base", dtype=torch.float32)
    return (PeftModel.from_pretrained(model, room / "runs/tuned/adapter") if tuned else model).eval(), processor


@torch.inference_mode()
def answer(model: Any, processor: Any, messages: list[dict[str, str]], images: list[Image.Image]) -> str:
    """Return the greedy answer."""
    inputs = processor.apply_chat_template(in_parts(messages, images), tokenize=True, return_dict=True,
                                           add_generation_prompt=True, return_tensors="pt")  # fmt: skip
    ids = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["colours", "pairs"])
def test_evaluation_asks_what_the_plain_models_are_asked(room: Path, name: str) -> None:
    """Answers and perplexity of base and tuned model, padded in batches, are those of each question alone."""
    job = resolve(
        {"model": {"path": "base"}, "tuned": ["tuned"], "hardware": CPU,
         "evaluated": {"folder": "data", "set": name, "max_rows": 4, "batch_size": 3},
         "generation": {"max_new_tokens": LENGTH}}, job="evaluation",
    )  # fmt: skip
    with context(room, f"evaluation-{name}") as at:
        measured = evaluate(job, at)
        rows = [json.loads(line) for line in (at.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    for subject in ("base", "tuned"):
        model, processor = plain(room, tuned=subject == "tuned")
        total = count = 0.0
        for row, (messages, images) in zip(rows, conversations(room / "data", name), strict=False):
            assert row["answers"][subject] == answer(model, processor, messages[:-1], images)
            assert "<image>" in row["prompt"] and "\ufdd1" not in row["prompt"]
            parts = in_parts(messages, images)
            inputs = processor.apply_chat_template(parts, tokenize=True, return_dict=True, return_tensors="pt")
            asked = processor.apply_chat_template(parts[:-1], tokenize=True, add_generation_prompt=True)
            labels = inputs["input_ids"].clone()
            labels[:, : len(asked[0])] = -100
            with torch.inference_mode():
                learned = int((labels != -100).sum())
                total, count = total + model(**inputs, labels=labels).loss.item() * learned, count + learned
        assert measured[subject]["perplexity"] == pytest.approx(2.718281828459045 ** (total / count), rel=1e-4)


def test_a_model_of_texts_is_not_asked_about_images(room: Path) -> None:
    job = resolve({"model": {"path": "texts"}, "hardware": CPU, "evaluated": {"folder": "data", "set": "colours"}},
                  job="evaluation")  # fmt: skip
    with context(room, "blind") as at, pytest.raises(InputError) as caught:
        evaluate(job, at)
    assert (caught.value.code, caught.value.place) == ("media.not_taken", "evaluated.set")


def test_a_question_that_would_lose_a_part_of_an_image_is_refused(room: Path) -> None:
    job = resolve({"model": {"path": "base"}, "hardware": CPU,
                   "evaluated": {"folder": "data", "set": "colours", "cutoff": 20}}, job="evaluation")  # fmt: skip
    with context(room, "long") as at, pytest.raises(InputError) as caught:
        evaluate(job, at)
    assert caught.value.code == "evaluated.too_long" and caught.value.params["number"] == 1


def test_an_export_sees(room: Path, tmp_path: Path) -> None:
    """The merged model, read with its processor from its own folder, answers like base and adapter."""
    job = resolve({"model": {"path": "base"}, "source": "tuned", "hardware": CPU, "folder": str(tmp_path / "out")},
                  job="export")  # fmt: skip
    with context(room, "export") as at:
        export(job, at)
    merged: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "out")
    model, other = plain(room, tuned=True)
    for messages, images in conversations(room / "data", "colours")[:3]:
        given = answer(merged, processor, messages[:-1], images)
        assert given == answer(model, other, messages[:-1], images)
    assert "image-text-to-text" in (tmp_path / "out" / "README.md").read_text()


@contextlib.contextmanager
def served(room: Path, name: str, model: str, *tuned: str) -> Iterator[Endpoint]:
    job = resolve({"model": {"path": model}, "tuned": list(tuned), "hardware": CPU}, job="serving")
    with context(room, name) as at:

        def run() -> None:
            with contextlib.suppress(Stopped):
                serve(job, at)

        thread = threading.Thread(target=run)
        thread.start()
        while not (there := endpoint(at.folder)) and thread.is_alive():
            time.sleep(0.02)
        try:
            assert there
            yield there
        finally:
            at.stop.set()
            thread.join(20)


@pytest.fixture(scope="module")
def server(room: Path) -> Iterator[Endpoint]:
    with served(room, "chat", "base", "tuned") as there:
        yield there


def asked(*parts: Any, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": LENGTH, **more}


def post(server: Endpoint, body: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {server.token}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30, trust_env=False)


@pytest.mark.parametrize("model", ["base", "tuned"])
def test_it_chats_about_images(room: Path, server: Endpoint, model: str) -> None:
    """By data: URLs, streamed, over several turns; the answers are those of the plain models."""
    assert server.sees
    red, blue = (room / "data" / "images" / f"{name}.png" for name in ("red", "blue"))
    parts = [image_part(path) for path in (red, blue)]
    given = "".join(stream(server, asked(parts[0], "Which colour?", model=model)))
    own, processor = plain(room, tuned=model == "tuned")
    wanted = answer(own, processor, [says("user", "<image>Which colour?")], [Image.open(red)])
    assert given == wanted
    turns = [{"role": "assistant", "content": given}, {"role": "user", "content": ["and ", parts[1]]}]
    turns[1]["content"] = asked("and ", parts[1])["messages"][0]["content"]
    body = asked(parts[0], "Which colour?", model=model)
    body["messages"] += turns
    response = post(server, body).json()
    messages = [says("user", "<image>Which colour?"), says("assistant", given), says("user", "and <image>")]
    text = answer(own, processor, messages, [Image.open(red), Image.open(blue)])
    assert response["choices"][0]["message"]["content"] == text
    assert response["usage"]["prompt_tokens"] > 2 * 16


def test_what_is_typed_is_no_image(room: Path, server: Endpoint) -> None:
    """A placeholder in a text is text: alone, and beside an image."""
    image = image_part(room / "data/images/red.png")
    for body in (asked("say <image> \ufdd1", model="base"), asked("say <image>\ufdd1 ", image, model="base")):
        assert post(server, body).status_code == 200


@pytest.fixture
def canary() -> Iterator[tuple[str, list[Any]]]:
    """(address of a server, connections to it)."""
    listener, seen = socket.create_server(("127.0.0.1", 0)), []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                seen.append(listener.accept())

    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}", seen
    listener.close()


BAD = {
    "http": ("http://{canary}/a.png", "media.url"),
    "https": ("https://{canary}/a.png", "media.url"),
    "file": ("file:///etc/hostname", "media.url"),
    "path": ("/etc/hostname", "media.url"),
    "of the workspace": ("{room}/data/images/red.png", "media.url"),
    "of another type": ("data:text/html;base64,PGI+", "media.url"),
    "no base64": ("data:image/png,abc", "media.url"),
    "bad base64": ("data:image/png;base64,!!!", "media.foreign"),
    "no image": ("data:image/png;base64," + base64.b64encode(b"hello").decode(), "media.foreign"),
    "a program": ("data:image/eps;base64," + base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0").decode(), "media.foreign"),
    "a drawing": ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "media.foreign"),
}


@pytest.mark.parametrize("name", BAD)
def test_nothing_else_is_opened(room: Path, server: Endpoint, canary: tuple[str, list[Any]], name: str) -> None:
    url, code = BAD[name]
    url = url.replace("{canary}", canary[0]).replace("{room}", str(room))
    body = asked("what?", {"type": "image_url", "image_url": {"url": url}}, model="base")
    response = post(server, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, "messages.0.content.1.image_url.url")
    assert canary[1] == []


def test_a_bomb_is_refused(server: Endpoint, tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    response = post(server, asked(image_part(tmp_path / "a.png"), model="base"))
    assert response.status_code == 400 and response.json()["error"]["code"] == "media.huge"
    Image.new("1", (8_000, 8_000)).save(tmp_path / "half.png")
    half = image_part(tmp_path / "half.png")
    error = post(server, asked(half, half, model="base")).json()["error"]  # each is allowed, both are not
    assert (error["code"], error["param"]) == ("media.huge", "messages.0.content.1.image_url.url")


@pytest.mark.parametrize("part", [
    {"type": "image_url", "image_url": "data:image/png;base64,"},
    {"type": "image_url", "image_url": {"url": "data:", "detail": "high"}},
    {"type": "image", "path": "/etc/hostname"},
    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    {"type": "text", "text": "x", "url": "http://127.0.0.1"},
])  # fmt: skip
def test_other_parts_are_refused(server: Endpoint, part: dict[str, Any]) -> None:
    response = post(server, asked("what?", part, model="base"))
    assert response.status_code == 400 and response.json()["error"]["code"] == "chat.invalid"


def test_a_model_of_texts_takes_parts_but_no_image(room: Path) -> None:
    image = image_part(room / "data/images/red.png")
    with served(room, "deaf", "texts") as there:
        assert not there.sees and post(there, asked("one", " two", model="base")).status_code == 200
        response = post(there, asked(image, model="base"))
        assert response.status_code == 400 and response.json()["error"]["code"] == "media.not_taken"
