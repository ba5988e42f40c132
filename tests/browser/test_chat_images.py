"""An image in the chat of the board: offered where the model sees, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
from driver import Board, visitor
from playwright.sync_api import Browser, expect

from app import jobs
from core import config, runs
from tests.core.seeing import make_llava, make_pictures

pytestmark = pytest.mark.browser
MINUTE = 60_000


@pytest.mark.parametrize("model", ["llava", "tiny"])
def test_an_image_is_asked_about(browser: Browser, board: Board, tmp_path: Path, model: str) -> None:
    if model == "llava":
        make_llava(board.workspace / "llava")
    picture = make_pictures(tmp_path / "pictures") / "images" / "red.png"
    job = config.resolve({"model": {"path": model}, "hardware": {"device": "cpu", "threads": 1}}, job="serving")
    folder = jobs.start(job, board.workspace)
    page = visitor(browser, board)
    page.locator("#tb-tab-chat-button").click()
    expect(page.locator("#tb-chat-status")).to_contain_text("Ready", timeout=2 * MINUTE)
    image = page.locator("#tb-chat-image")
    expect(image).to_be_visible(visible=model == "llava")
    if model == "llava":
        with page.expect_file_chooser() as chooser:
            image.click()
        chooser.value.set_files(picture)
        expect(image).to_contain_text("red", timeout=MINUTE)
        page.locator("#tb-chat-input textarea").fill("Which colour?")
        page.locator("#tb-chat-send").click()
        expect(page.locator("#tb-chat-answer-0 .bot").last).not_to_be_empty(timeout=MINUTE)
        expect(page.locator("#tb-chat-answer-0 .user").last).to_contain_text("\U0001f5bc")
        expect(page.locator("#tb-chat-note")).to_be_hidden()
        expect(image).not_to_contain_text("red", timeout=MINUTE)
        expect(image).to_have_text("Image")
    runs.stop(folder)
    assert page.faults == []  # type: ignore[attr-defined]
