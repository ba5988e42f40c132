"""From the board: a sweep of two settings, four runs that wait, their order, and the table of what came of them."""

from __future__ import annotations

import re

import pytest
from driver import Board, visitor
from playwright.sync_api import Browser, Page, expect
from test_journey import tab, until

from core import queue, runs, sweep

pytestmark = pytest.mark.browser
MINUTE = 60_000
SETTINGS = """
name: grid
model: {path: tiny}
data: {folder: data, train: [orders], cutoff: 64, eval_share: 0.1}
training: {epochs: 0, max_steps: 4, batch_size: 2, eval_every: 2}
hardware: {device: cpu, threads: 1}
"""


def pick(page: Page, place: int, words: str, values: str) -> None:
    """Choose a setting of the sweep by its label, and give its values."""
    box = page.locator(f"#tb-sweep-field-{place} input")
    box.click()
    box.fill(words)
    page.get_by_role("option", name=re.compile(words)).first.click()
    text = page.locator(f"#tb-sweep-values-{place} textarea, #tb-sweep-values-{place} input")
    expect(text).not_to_have_value("")  # the value of the form stands there
    text.fill(values)
    text.press("Tab")


def test_a_sweep_of_two_by_two_from_the_form_to_four_finished_runs(browser: Browser, board: Board) -> None:
    queue.rule(board.workspace, paused=True, at_once=2)
    page = visitor(browser, board)
    page.locator("#tb-train-text button").first.click()
    expect(page.locator("#tb-train-yaml textarea")).to_have_value(re.compile("kind: train"))
    page.locator("#tb-train-yaml textarea").fill(SETTINGS)
    page.locator("#tb-train-load").click()
    expect(page.locator("#f-train-name textarea, #f-train-name input")).to_have_value("grid")
    page.locator("#tb-sweep > button").click()
    pick(page, 0, "Learning rate · ", "1e-3, x")
    pick(page, 1, "Rank · ", "2, 4")
    expect(page.locator("#tb-sweep-told [role=alert]")).to_contain_text("optimizer.learning_rate=x")
    expect(page.locator("#tb-sweep-add")).to_be_disabled()
    page.locator("#tb-sweep-values-0 textarea, #tb-sweep-values-0 input").fill("1e-3, 3e-3")
    page.locator("#tb-sweep-values-0 textarea, #tb-sweep-values-0 input").press("Tab")
    expect(page.locator("#tb-sweep-told [role=status]")).to_contain_text("2 × 2 = 4 runs")
    assert runs.listed(board.workspace) == []
    page.locator("#tb-sweep-add").click()
    expect(page.locator("#tb-live-head")).to_contain_text("number 1 in the queue")
    assert [folder.name for folder in runs.waiting(board.workspace)] == [f"grid-{n}" for n in (1, 2, 3, 4)]
    order(page, board)
    finished(page, board)
    assert page.faults == []  # type: ignore[attr-defined]
    page.context.close()


def order(page: Page, board: Board) -> None:
    """Change the order, take one off and put it back, let the queue go on."""
    tab(page, "runs")
    lines = page.locator(".tb-queue-lines li")
    expect(lines).to_have_count(4)
    lines.nth(2).locator("[data-act=up]").click()
    expect(lines.nth(1)).to_contain_text("grid-3")
    lines.nth(3).locator("[data-act=drop]").click()
    expect(lines).to_have_count(3)
    page.locator("#tb-runs-table").get_by_role("button", name="grid-4").click()
    page.locator("#tb-runs-enqueue").click()
    expect(lines).to_have_count(4)
    assert [folder.name for folder in runs.waiting(board.workspace)] == [f"grid-{n}" for n in (1, 3, 2, 4)]
    page.locator("#tb-queue-continue").click()


def finished(page: Page, board: Board) -> None:
    """Wait for the four, look at their table and curves, open one."""
    folders = sweep.members("grid", board.workspace)
    until(lambda: [runs.look(folder).status for folder in folders] == ["done"] * 4)
    expect(page.locator(".tb-queue-lines li")).to_have_count(0)
    told = page.locator("#tb-runs-sweep")
    expect(told.locator("tbody tr .tb-chip-done")).to_have_count(4)
    best = sweep.ranked(sweep.row(runs.look(folder)) for folder in folders)[0]
    expect(told.locator("tbody tr").first).to_contain_text(best.run)
    for chart in range(2):
        expect(told.locator("figure").nth(chart).locator("path[data-name]")).to_have_count(4)
    told.get_by_role("button", name=best.run).click()
    expect(page.locator("#tb-live-head")).to_contain_text(best.run)
    expect(page.locator("#tb-charts svg").first).to_be_visible()


def test_a_refusal_is_told_on_the_page(browser: Browser, board: Board) -> None:
    queue.rule(board.workspace, paused=True, at_once=2)
    page = visitor(browser, board)
    tab(page, "runs")
    box = page.locator("#tb-queue-at-once input")
    for wrong in ("99", "1.6"):
        box.fill(wrong)
        box.press("Enter")
        expect(page.get_by_test_id("toast-body").last).to_contain_text("16")
        expect(box).to_have_value("2")
        page.get_by_test_id("toast-close").last.click()
        expect(page.get_by_test_id("toast-body")).to_have_count(0)
    assert page.faults == []  # type: ignore[attr-defined]
    page.context.close()
