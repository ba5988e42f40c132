"""The page itself: languages in mid-form, light and dark, a phone, mistakes at their field, accessibility."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from driver import Board, visitor
from playwright.sync_api import Browser, Page, expect

from app.i18n import tr

pytestmark = pytest.mark.browser
TABS = ("data", "train", "evaluate", "chat", "export", "runs")
KNOWN: set[str] = set()
"""Findings of axe that come from gradio's own components, and that we cannot mend from outside."""


@pytest.fixture
def page(browser: Browser, board: Board):
    opened = visitor(browser, board)
    yield opened
    assert opened.faults == []
    opened.context.close()


def speak(page: Page, name: str) -> None:
    page.locator("#tb-language input").click()
    page.get_by_role("option", name=name).click()


def test_switching_the_language_keeps_what_was_typed(page: Page) -> None:
    name = page.locator("#f-train-name textarea, #f-train-name input")
    name.fill("half typed")
    for language, spoken in (("ru", "Русский"), ("zh", "中文"), ("en", "English")):
        speak(page, spoken)
        expect(page.locator("#tb-start")).to_have_text(tr(language, "ui.train.start"))
        for key in TABS:
            expect(page.locator(f"#tb-tab-{key}-button")).to_have_text(tr(language, f"ui.board.tab.{key}"))
        expect(name).to_have_value("half typed")


def test_the_language_is_remembered_by_the_browser(page: Page) -> None:
    speak(page, "中文")
    expect(page.locator("#tb-start")).to_have_text(tr("zh", "ui.train.start"))
    page.wait_for_timeout(500)
    page.reload()
    expect(page.locator("#tb-start")).to_have_text(tr("zh", "ui.train.start"))


def test_the_first_language_is_that_of_the_browser(browser: Browser, board: Board) -> None:
    page = visitor(browser, board, locale="ru-RU")
    expect(page.locator("#tb-start")).to_have_text(tr("ru", "ui.train.start"))
    page.context.close()


@pytest.mark.parametrize("language", ["en", "ru", "zh"])
def test_a_mistake_is_told_at_its_field_and_nothing_is_lost(page: Page, board: Board, language: str) -> None:
    speak(page, {"en": "English", "ru": "Русский", "zh": "中文"}[language])
    expect(page.locator("#tb-start")).to_have_text(tr(language, "ui.train.start"))
    page.locator("#f-train-name textarea, #f-train-name input").fill("../../x")
    path = page.locator("#f-train-model-path input")
    path.fill("/etc")
    path.press("Enter")
    page.locator("#tb-start").click()
    from app.i18n import message

    told = message(language, "path.outside", {"path": "/etc", "root": str(board.workspace)})
    expect(page.locator("#f-train-model-path")).to_contain_text(told[:20], timeout=10_000)
    expect(page.locator("#f-train-name textarea, #f-train-name input")).to_have_value("../../x")
    assert list((board.workspace).glob("runs/*")) == []


@pytest.mark.parametrize("spoken", ["English", "Русский"])
def test_a_reload_keeps_the_form_and_forgets_what_is_no_settings(page: Page, spoken: str) -> None:
    speak(page, spoken)
    name = page.locator("#f-train-name textarea, #f-train-name input")
    box = page.locator("#tb-train-yaml textarea")
    page.locator("#tb-train-text button").first.click()
    expect(box).to_have_value(re.compile("name: demo-lora"))
    box.fill("name: draft\nstage: dpo\ntraining: {seed: 7}")
    page.locator("#tb-train-load").click()
    page.wait_for_function("(sessionStorage.getItem('tuneboard.train') || '').includes('kind: dpo')")
    for _ in range(2):
        page.reload()
        expect(name).to_have_value("draft")
        page.locator("#tb-train-text button").first.click()
        expect(box).to_have_value(re.compile("kind: dpo.*seed: 7", re.DOTALL))
    page.evaluate("sessionStorage.setItem('tuneboard.train', 'tuner: [')")
    page.reload()
    page.wait_for_function("window.landed?.train")
    expect(name).to_have_value("demo-lora")
    expect(page.locator("#tb-recipe input")).not_to_have_value("")


def test_dark_and_light(page: Page) -> None:
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    before = background()
    page.locator("#tb-theme").click()
    page.wait_for_timeout(300)
    assert background() != before
    page.reload()
    expect(page.locator("#tb-start")).to_be_visible(timeout=60_000)
    page.wait_for_timeout(500)
    assert background() != before


def test_a_phone_has_no_sideways_scroll_and_reaches_start(browser: Browser, board: Board) -> None:
    page = visitor(browser, board, phone=True)
    for key in TABS:
        button = page.locator(f"#tb-tab-{key}-button")
        if button.is_visible():
            button.click()
        page.wait_for_timeout(300)
        wide = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{key} is {wide} px too wide"
    page.locator("#tb-tab-train-button").click()
    expect(page.locator("#tb-start")).to_be_in_viewport()
    page.context.close()


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_new(browser: Browser, board: Board, dark: bool) -> None:
    page = visitor(browser, board, dark=dark)
    found = {}
    for key in TABS:
        page.locator(f"#tb-tab-{key}-button").click()
        page.wait_for_timeout(500)
        for violation in Axe().run(page).response["violations"]:
            if violation["id"] not in KNOWN:
                found[f"{key} {violation['id']}"] = [node["html"][:160] for node in violation["nodes"]][:3]
    assert found == {}
    page.context.close()


def test_without_the_link_nobody_comes_in(browser: Browser, board: Board) -> None:
    context = browser.new_context()
    page = context.new_page()
    response = page.goto(board.address)
    assert response and response.status == 401
    expect(page.locator("body")).to_contain_text(tr("en", "ui.signin.title"))
    context.close()
