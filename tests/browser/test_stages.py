"""From the board: every stage by its recipe, and runs of some with the curves that are theirs."""

from __future__ import annotations

import re

import pytest
from driver import Board, visitor
from playwright.sync_api import Browser, Locator, Page, expect
from test_journey import until

from app.i18n import tr
from core import runs
from core.recipes import recipes
from tests.conftest import write_rows
from tests.core.test_preference import PAIRS

pytestmark = pytest.mark.browser
MINUTE = 60_000
COMMON = """
model: {path: tiny}
data: {folder: data, train: [SET], cutoff: 64, eval_share: 0.2}
training: {epochs: 0, max_steps: 4, batch_size: 4, eval_every: 2}
hardware: {device: cpu, threads: 1}
"""
RUNS = {
    "dpo": ("stage: {kind: dpo}", "pairs.jsonl", ["rewards_margins", "rewards_accuracies"]),
    "ppo": (
        "stage: {kind: ppo, reward: {by: length, length: 5}, drawing: {max_new_tokens: 6}}", "orders",
        ["rewards_mean", "objective_kl", "policy_clipped", "policy_value_loss"],
    ),
}  # fmt: skip
"""Stage -> its settings, its set, and the curves that are seen."""


LATE = """() => {
    const real = window.fetch
    window.fetch = async (...asked) => {
        const answer = await real(...asked)
        await new Promise(done => setTimeout(done, 2000))
        return answer
    }
}"""
"""From now on each answer is late."""


@pytest.fixture(scope="module")
def page(browser: Browser, board: Board) -> Page:
    write_rows(board.workspace / "data" / "pairs.jsonl", PAIRS)
    page = visitor(browser, board)
    page.locator("#tb-train-text button").first.click()
    expect(page.locator("#tb-train-yaml textarea")).to_have_value(re.compile("kind: train"), timeout=MINUTE)
    return page


def test_every_stage_is_a_recipe_away(page: Page) -> None:
    stages = {name: recipe for name, recipe in recipes().items() if "stage" in recipe.layer}
    assert {recipe.layer["stage"]["kind"] for recipe in stages.values()} >= {"pt", "rm", "kto", "ppo", "grpo"}
    for recipe in stages.values():
        page.locator("#tb-recipe input").click()
        page.get_by_role("option", name=recipe.label, exact=True).click()
        kind = recipe.layer["stage"]["kind"]
        expect(page.locator("#tb-train-yaml textarea")).to_have_value(re.compile(rf"stage:\s+kind: {kind}\b"))
        expect(page.locator("#tb-form .tb-error")).to_have_count(0)


def write(field: Locator, value: str) -> None:
    field.fill(value)
    field.press("Tab")  # what is filled in at once is told when the field is left


def test_what_is_written_outlives_a_late_answer(browser: Browser, board: Board) -> None:
    page = visitor(browser, board)
    page.locator("#tb-train-text button").first.click()
    text = page.locator("#tb-train-yaml textarea")
    expect(text).to_have_value(re.compile("name: demo-lora"))
    name = page.locator("#f-train-name input")
    write(name, "earlier")
    expect(text).to_have_value(re.compile("name: earlier"))
    page.evaluate(LATE)
    with page.expect_request(lambda request: "later" in (request.post_data or "")):
        write(name, "later")
    text.fill("name: written")
    expect(page.locator("#tb-train-command textarea")).to_have_value(re.compile("name=later"))
    expect(text).to_have_value("name: written")
    page.locator("#tb-train-load").click()
    expect(name).to_have_value("written")
    expect(text).to_have_value(re.compile(r"kind: train\s+name: written"))
    write(name, "again")
    expect(text).to_have_value(re.compile("name: again"))
    assert page.faults == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", RUNS)
def test_a_stage_runs_with_its_own_curves(page: Page, board: Board, stage: str) -> None:
    settings, rows, curves = RUNS[stage]
    page.locator("#tb-train-yaml textarea").fill(f"name: {stage}\n{settings}{COMMON.replace('SET', rows)}")
    page.locator("#tb-train-load").click()
    expect(page.locator("#f-train-name textarea, #f-train-name input")).to_have_value(stage, timeout=MINUTE)
    page.locator("#tb-start").click()
    expect(page.locator("#tb-live-head")).to_contain_text(stage)
    until(lambda: runs.look(runs.find(stage, board.workspace)).status == "done")
    for curve in curves:
        expect(page.locator("#tb-charts")).to_contain_text(tr("en", f"ui.metric.{curve}"))
    assert page.faults == []  # type: ignore[attr-defined]
