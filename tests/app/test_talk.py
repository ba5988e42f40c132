"""Questions with images, as the board and the command line put them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from app import images, talk
from app.pickers import offers
from core.errors import InputError
from core.serving.client import image_part


def test_a_question_with_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(b"bytes")
    part = image_part(tmp_path / "a.webp")
    assert part["image_url"]["url"] == "data:image/webp;base64," + base64.b64encode(b"bytes").decode()
    message = talk.asked("<b>what?", [part, part])
    assert talk.text(message) == "<b>what?" and talk.images(message) == [part, part]
    assert images.told(message) == 2 * images.SIGN + "&lt;b&gt;what?"
    assert talk.asked("what?", []) == {"role": "user", "content": "what?"}


@pytest.mark.parametrize("name", ["none.png", "", "a\0b"])
def test_an_image_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        image_part(tmp_path / name)
    assert caught.value.code == "chat.image"


def test_models_that_see_are_offered(tmp_path: Path) -> None:
    assert {"llava-hf/llava-1.5-7b-hf", "Qwen/Qwen3-0.6B"} <= set(offers("model", tmp_path))
