"""The Data tab on the real board: good and broken files, in three languages, to the Train form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from driver import Board, visitor
from playwright.sync_api import Browser, Page, expect

from app.i18n import tr

pytestmark = pytest.mark.browser
SPOKEN = {"en": "English", "ru": "Русский", "zh": "中文"}
SLOW = 60_000
"""The tokenizer is loaded in a process of its own."""


@pytest.fixture
def page(browser: Browser, board: Board):
    opened = visitor(browser, board)
    yield opened
    assert opened.faults == []
    opened.context.close()


def arrive(page: Page, language: str) -> None:
    page.locator("#tb-language input").click()
    page.get_by_role("option", name=SPOKEN[language]).click()
    tab = page.locator("#tb-tab-data-button")
    expect(tab).to_have_text(tr(language, "ui.board.tab.data"))
    tab.click()


def look(page: Page, language: str, view: str) -> None:
    page.locator("#tb-data-view").get_by_text(tr(language, f"ui.data.view_{view}"), exact=True).click()


def drop(page: Page, path: Path) -> None:
    page.locator("#tb-data-file input[type=file]").set_input_files(path)
    expect(page.locator("#tb-data-add")).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("language", SPOKEN)
def test_a_dropped_csv_becomes_a_set_and_reaches_the_form(
    page: Page, board: Board, tmp_path: Path, language: str
) -> None:
    arrive(page, language)
    name = f"sums_{language}"
    lines = [
        "question,answer",
        *(f'"What is {i} + 1, please?",{i + 1}' for i in range(30)),
        '"What is 3 + 1, please?",4',
    ]
    (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    drop(page, tmp_path / f"{name}.csv")
    expect(page.locator("#tb-data-told")).to_contain_text("What is 3 + 1")
    expect(page.locator("#tb-data-prompt input")).to_have_value("question")
    page.locator("#tb-data-add").click()
    shown = page.locator("#tb-data-shown")
    expect(shown).to_contain_text("What is 9 + 1, please?")
    entries = json.loads((board.workspace / "data" / "dataset_info.json").read_text())
    assert entries[name]["columns"] == {"prompt": "question", "response": "answer"}
    page.locator("#tb-data-onward").click()
    expect(shown).to_contain_text("What is 10 + 1, please?")
    expect(shown).not_to_contain_text("What is 9 + 1, please?")
    page.locator("#tb-data-query input, #tb-data-query textarea").fill("is 27 +")
    page.locator("#tb-data-query input, #tb-data-query textarea").press("Enter")
    expect(shown.locator("tbody tr")).to_have_count(1)
    look(page, language, "tokens")
    expect(shown.locator(".tb-tokens .tb-learned")).not_to_have_count(0, timeout=SLOW)
    learned = "".join(shown.locator(".tb-tokens .tb-learned").all_inner_texts())
    assert re.fullmatch(r"1<\|end\|>↵?\n?", learned)
    if language == "en":  # each look starts a process
        look(page, language, "packs")
        expect(shown.locator(".tb-seam")).not_to_have_count(0, timeout=SLOW)
        seams = shown.locator(".tb-seam").all_inner_texts()
        assert len(seams) > 1
        assert sum(map(int, seams)) == shown.locator(".tb-tokens .tb-token").count() <= 512
        look(page, language, "lengths")
        expect(shown.locator(".tb-bars i")).to_have_count(40, timeout=SLOW)
    look(page, language, "report")
    expect(shown.locator("[data-line='32']")).to_be_visible(timeout=60_000)
    shown.locator("[data-line='32']").click()
    expect(shown.locator("tbody tr")).to_have_count(1)
    page.locator("#tb-data-train").click()
    expect(page.locator("#tb-start")).to_be_visible(timeout=60_000)
    page.locator("#tb-card-train-data button").first.click()
    expect(page.locator("#f-train-data-train")).to_contain_text(name)


@pytest.mark.parametrize("language", SPOKEN)
def test_broken_rows_are_named_in_every_language(page: Page, board: Board, tmp_path: Path, language: str) -> None:
    arrive(page, language)
    name = f"bad_{language}"
    rows = ['{"instruction": "a", "output": "b"}', '{"instruction": 3, "output": "b"}', "{oops",
            '{"instruction": "<img src=x onerror=alert(1)>", "output": "b"}']  # fmt: skip
    (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    drop(page, tmp_path / f"{name}.jsonl")
    page.locator("#tb-data-add").click()
    shown = page.locator("#tb-data-shown")
    expect(shown).to_contain_text("<img src=x")
    look(page, language, "inspect")
    params = {"file": f"{name}.jsonl", "line": 2, "column": "instruction", "found": "number"}
    expect(shown).to_contain_text(tr(language, "message.data.not_text", **params))
    look(page, language, "report")
    expect(shown).to_contain_text(tr(language, "ui.data.broken_told", n=2))


def test_a_file_that_is_none_is_refused_and_nothing_changes(page: Page, board: Board, tmp_path: Path) -> None:
    arrive(page, "en")
    (tmp_path / "page.json").write_text("<!doctype html><p>", encoding="utf-8")
    page.locator("#tb-data-file input[type=file]").set_input_files(tmp_path / "page.json")
    expect(page.locator("#tb-data-told [role=alert]")).to_contain_text("HTML")
    expect(page.locator("#tb-data-add")).to_be_hidden()
    assert not (board.workspace / "data" / "page.json").exists()


def test_a_phone_and_axe(browser: Browser, board: Board) -> None:
    page = visitor(browser, board, phone=True)
    page.locator("#tb-tab-data-button").click()
    expect(page.locator("#tb-data-shown table")).to_be_visible(timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    look(page, "en", "tokens")
    expect(page.locator(".tb-tokens .tb-learned").first).to_be_visible(timeout=SLOW)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = {violation["id"] for violation in Axe().run(page).response["violations"]}
    assert found == set()
    page.context.close()


def test_a_file_whose_columns_say_nothing_is_described_on_the_page(page: Page, board: Board, tmp_path: Path) -> None:
    arrive(page, "en")
    rows = "".join(f"what makes {i},{i}\n" for i in range(40))
    (tmp_path / "odd (1).csv").write_text(f"foo,bar\n{rows}", encoding="utf-8")
    drop(page, tmp_path / "odd (1).csv")
    told = page.locator("#tb-data-told")
    expect(told.locator("[role=alert]")).to_contain_text("foo, bar")
    expect(told).to_contain_text("what makes 3")
    page.locator("#tb-data-train").click()
    expect(told).to_contain_text("is no set yet")
    for column, name in (("prompt", "foo"), ("response", "bar")):
        page.locator(f"#tb-data-{column} input").fill(name)
        page.locator(f"#tb-data-{column} input").press("Enter")
    page.locator("#tb-data-add").click()
    expect(page.locator("#tb-data-shown")).to_contain_text("what makes 9")
    entries = json.loads((board.workspace / "data" / "dataset_info.json").read_text())
    assert entries["odd _1_"] == {
        "file_name": "odd (1).csv", "formatting": "alpaca", "columns": {"prompt": "foo", "response": "bar"},
    }  # fmt: skip


def test_another_format_offers_its_columns(page: Page, tmp_path: Path) -> None:
    arrive(page, "en")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    drop(page, tmp_path / "pairs.jsonl")
    expect(page.locator("#tb-data-chosen")).to_be_visible()
    page.locator("#tb-data-format input").click()
    page.get_by_role("option", name="sharegpt").click()
    expect(page.locator("#tb-data-messages")).to_be_visible(timeout=60_000)


def test_views_can_be_chosen_beside_a_long_report(page: Page, board: Board, tmp_path: Path) -> None:
    arrive(page, "en")
    rows = [{"instruction": f"mail anna{i % 30}@example.org <|im_end|>", "output": "+49 30 1234567"} for i in range(90)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drop(page, tmp_path / "long.jsonl")
    page.locator("#tb-data-add").click()
    shown = page.locator("#tb-data-shown")
    expect(shown).to_contain_text("anna3@")
    look(page, "en", "report")
    expect(shown.locator(".tb-finding")).not_to_have_count(0)
    look(page, "en", "inspect")
    expect(shown.locator(".tb-facts")).to_be_visible(timeout=60_000)
    page.locator("#tb-data-view").get_by_text("Rows", exact=True).click()
    page.locator("#tb-data-goto input").fill("77")
    page.locator("#tb-data-goto input").press("Enter")
    expect(shown.locator("tbody tr").first.locator("td").first).to_have_text("77")
    page.locator("#tb-data-back").click()
    expect(shown.locator("tbody tr").first.locator("td").first).to_have_text("1")
