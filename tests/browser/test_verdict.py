"""The verdict on memory below the form: it follows the settings, and its buttons mend them."""

from __future__ import annotations

import re

import pytest
from driver import Board, visitor
from playwright.sync_api import Browser, expect

from app.i18n import tr

pytestmark = pytest.mark.browser
BATCH = "#f-train-training-batch_size input[type=number]"
LATE = """() => {
    const real = window.fetch
    let touched
    window.fetch = async (...asked) => {
        const body = String(asked[1]?.body), about = body.includes('4096') && JSON.parse(body).fn_index
        touched ??= about || undefined
        const answer = await real(...asked)
        if (window.late && about === touched) await new Promise(done => setTimeout(done, 3000))
        return answer
    }
}"""
"""Once `late` is set, an answer about a batch of 4096 that was typed is late."""


def test_a_run_that_will_not_fit_is_told_and_mended_by_a_button(browser: Browser, board: Board) -> None:
    page = visitor(browser, board)
    told = page.locator("#tb-fit")
    expect(told.locator(".tb-fits")).to_contain_text(tr("en", "ui.fit.batches", rows=16, tokens="512"))
    told.get_by_text(tr("en", "ui.fit.made_of")).click()
    expect(told).to_contain_text(tr("en", "ui.fit.activations"))
    page.locator("#tb-card-train-training > button").click()
    page.evaluate(LATE)
    page.locator(BATCH).fill("4096")
    page.locator(BATCH).press("Tab")
    expect(told.locator("[role=alert]")).to_contain_text("4,096 × 512")
    expect(page.locator("#tb-fit-brief")).to_contain_text("Will not fit")  # beside Start, always in view
    page.wait_for_timeout(2000)  # until no answer is on its way
    page.evaluate("window.late = true")
    page.locator("#tb-fix-0").click()  # which also leaves the field where the cursor stood
    expect(told.locator(".tb-fits")).to_be_visible()
    page.wait_for_timeout(4000)  # until the late answer is there, too
    expect(page.locator("#tb-fix-0")).to_be_hidden()
    expect(page.locator("#tb-fit-brief")).to_be_hidden()
    assert 1 <= int(page.locator(BATCH).input_value()) < 4096
    accumulation = int(page.locator("#f-train-training-accumulation input[type=number]").input_value())
    assert accumulation * int(page.locator(BATCH).input_value()) == 4096
    page.locator("#tb-train-text button").first.click()
    yaml = page.locator("#tb-train-yaml textarea")
    for size in ("2", "3"):  # a value that differed already changes, too
        page.locator(BATCH).fill(size)
        page.locator(BATCH).press("Tab")
        expect(yaml).to_have_value(re.compile(rf"batch_size: {size}\b"))
    page.locator("#tb-language input").click()
    page.get_by_role("option", name="Русский").click()
    expect(told).to_contain_text(tr("ru", "ui.fit.made_of"))
    assert page.faults == []
    page.context.close()
