"""One person's way through the board, on real runs.

Start, reload, a second browser, a killed board, stop, resume, measure, ask, export.
The tests of this file follow one another on one board.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import pytest
from driver import Board, visitor
from playwright.sync_api import Browser, Page, expect

from core import config, runs

pytestmark = pytest.mark.browser
MINUTE = 60_000
STEPS = 2500
SETTINGS = f"""
name: journey
model: {{path: tiny}}
data: {{folder: data, train: [orders], eval_share: 0.1}}
training: {{epochs: 0, max_steps: {STEPS}, batch_size: 4, eval_every: 500}}
optimizer: {{learning_rate: 0.003}}
tuner: {{kind: lora, rank: 4, alpha: 8.0}}
saving: {{every: 500}}
hardware: {{device: cpu, threads: 1}}
"""


@pytest.fixture(scope="module")
def page(browser: Browser, board: Board) -> Page:
    return visitor(browser, board)


@pytest.fixture(scope="module")
def unbroken(board: Board) -> Path:
    """The same run, begun beside the journey and left alone."""
    folder = runs.create(config.load(SETTINGS.replace("journey", "unbroken"), "settings"), board.workspace)
    runs.launch(folder)
    return folder


def tab(page: Page, name: str) -> None:
    page.locator(f"#tb-tab-{name}-button").click()


def fill(page: Page, settings: str) -> None:
    """Put settings into the form of the Train tab as YAML."""
    box = page.locator("#tb-train-yaml textarea")
    if not box.is_visible():
        page.locator("#tb-train-text button").first.click()
        expect(box).to_have_value(re.compile("kind: train"), timeout=MINUTE)
    box.fill(settings)
    page.locator("#tb-train-load").click()
    expect(page.locator("#f-train-name textarea, #f-train-name input")).to_have_value("journey", timeout=MINUTE)


def choose(page: Page, card: str, field: str, value: str) -> None:
    """Type a value into a dropdown that takes any, opening its card where it is folded."""
    box = page.locator(f"#f-{card}-{field} input")
    if not box.is_visible():
        page.locator(f"#tb-card-{card} button").first.click()
    box.fill(value)
    box.press("Enter")


def status(board: Board, name: str) -> str:
    return runs.look(runs.find(name, board.workspace)).status


def until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def step(board: Board) -> int:
    return runs.look(runs.find("journey", board.workspace)).state.step


def curve(page: Page) -> str:
    return page.locator("#tb-charts svg path[data-name]").first.get_attribute("d") or ""


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_start_and_the_curve_moves(page: Page, board: Board, unbroken: Path) -> None:
    fill(page, SETTINGS)
    page.locator("#tb-start").click()
    expect(page.locator("#tb-live-head")).to_contain_text("journey")
    expect(page.locator("#tb-charts svg").first).to_be_visible(timeout=MINUTE)
    before = curve(page)
    until(lambda: curve(page) != before)
    assert "run=journey" in page.url


def test_reload_keeps_it(page: Page) -> None:
    page.reload()
    expect(page.locator("#tb-live-head")).to_contain_text("journey", timeout=MINUTE)
    expect(page.locator("#tb-charts svg").first).to_be_visible()


def test_a_second_browser_sees_it(browser: Browser, board: Board) -> None:
    other = visitor(browser, board)
    expect(other.locator("#tb-live-head")).to_contain_text("journey", timeout=MINUTE)
    expect(other.locator("#tb-charts svg").first).to_be_visible()
    assert other.faults == []
    other.context.close()


def test_a_killed_board_comes_back_to_the_same_run(page: Page, board: Board) -> None:
    before = step(board)
    board.kill()
    assert status(board, "journey") == "running"
    board.start()
    page.goto(f"{board.address}/?run=journey")
    expect(page.locator("#tb-live-head")).to_contain_text("journey", timeout=MINUTE)
    until(lambda: step(board) > before)


def test_stop_keeps_the_work(page: Page, board: Board) -> None:
    page.locator("#tb-stop").click()
    until(lambda: status(board, "journey") == "stopped")
    expect(page.locator("#tb-resume")).to_be_visible(timeout=MINUTE)
    assert 0 < step(board) < STEPS


def test_resume_ends_bit_equal_to_an_unbroken_run(page: Page, board: Board, unbroken: Path) -> None:
    page.locator("#tb-resume").click()
    until(lambda: status(board, "journey") == "done", 400)
    until(lambda: runs.look(unbroken).status == "done", 400)
    broken = board.workspace / "runs" / "journey"
    assert weights(broken) == weights(unbroken)
    ends = [json.loads((folder / "metrics.json").read_text())["loss"] for folder in (broken, unbroken)]
    assert ends[0] == ends[1]
    expect(page.locator("#tb-next-chat")).to_be_visible(timeout=MINUTE)


def test_evaluate_base_and_tuned(page: Page, board: Board) -> None:
    tab(page, "evaluate")
    choose(page, "evaluation-evaluated", "folder", "data")
    choose(page, "evaluation-evaluated", "set", "orders")
    page.locator("#tb-evaluate-start").click()
    table = page.locator("#tb-evaluate-table table")
    expect(table).to_be_visible(timeout=2 * MINUTE)
    expect(table).to_contain_text("journey")
    expect(page.locator("#tb-evaluate-answers")).to_contain_text("JSON")
    folder = board.workspace / "runs" / "evaluation"
    found = json.loads((folder / "metrics.json").read_text())
    assert found["journey"]["perplexity"] < found["base"]["perplexity"]


def test_chat_base_beside_tuned(page: Page, board: Board) -> None:
    tab(page, "train")
    page.locator("#tb-next-chat").click()  # which also says whom to chat with
    page.locator("#tb-chat-load").click()
    expect(page.locator("#tb-chat-status")).to_contain_text("journey", timeout=2 * MINUTE)
    box = page.locator("#tb-chat-input textarea")
    box.fill("red pen for Anna <script>document.title='x'</script>")
    page.locator("#tb-chat-send").click()
    for column in (0, 1):
        expect(page.locator(f"#tb-chat-answer-{column} .bot").last).not_to_be_empty(timeout=2 * MINUTE)
    assert page.title() != "x"
    page.locator("#tb-chat-unload").click()
    until(lambda: status(board, "chat") == "stopped")


def test_export_a_merged_model(page: Page, board: Board) -> None:
    tab(page, "export")
    page.locator("#tb-export-start").click()
    expect(page.locator("#tb-export-table")).to_contain_text("model", timeout=2 * MINUTE)
    until(lambda: status(board, "export") == "done")
    assert (board.workspace / "runs" / "export" / "model" / "model.safetensors").exists()


def test_runs_lists_everything_and_deletes_after_asking(page: Page, board: Board) -> None:
    tab(page, "runs")
    table = page.locator("#tb-runs-table")
    for name in ("journey", "unbroken", "evaluation", "export"):
        expect(table).to_contain_text(name)
    table.get_by_role("button", name="evaluation").click()
    page.locator("#tb-runs-delete").click()
    expect(page.locator("#tb-runs-question")).to_contain_text("evaluation")
    # another line that is clicked meanwhile is not what was asked about
    table.get_by_role("button", name="export").click()
    expect(page.locator("#tb-runs-chosen")).to_contain_text("export")
    page.locator("#tb-runs-yes").click()
    until(lambda: not (board.workspace / "runs" / "evaluation").exists())
    assert (board.workspace / "runs" / "export").exists()


def test_nothing_went_wrong_on_the_page(page: Page) -> None:
    # the killed board is the one fault that was asked for
    expected = ("ERR_CONNECTION", "Failed to fetch", "ERR_INCOMPLETE_CHUNKED")
    assert [fault for fault in page.faults if not any(part in fault for part in expected)] == []
