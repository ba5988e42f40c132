"""Languages: fall-back, plurals, numbers, times."""

import json
import sys
from subprocess import run

import pytest

from app import i18n
from app.i18n import duration, message, moment, number, pick, size, tr

STEPS = {"one": "{n} шаг", "few": "{n} шага", "many": "{n} шагов", "other": "{n} шага"}


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Small locale files of our own, in place of the real ones."""
    english = {
        "ui": {"greeting": "Hello, {name}", "steps": {"one": "{n} step", "other": "{n} steps"}},
        "message": {
            "slow": {"one": "{n} step at {rate}", "other": "{n} steps at {rate}"},
            "port": "Port {port} is taken",
        },
    }
    tables = {"en": english, "ru": {"ui": {"steps": STEPS}}, "zh": {"ui": {"steps": {"other": "{n} 步"}}}}
    for lang, content in tables.items():
        (tmp_path / f"{lang}.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(i18n, "FOLDER", tmp_path)
    i18n.table.cache_clear()
    yield
    i18n.table.cache_clear()


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "шагов"), (1, "шаг"), (2, "шага"), (5, "шагов"), (11, "шагов"), (21, "шаг"), (112, "шагов"), (1.5, "шага")],
)
def test_russian_plurals(words, n, text):
    assert tr("ru", "ui.steps", n=n) == f"{n} {text}"


def test_plurals_of_the_other_languages(words):
    assert [tr("en", "ui.steps", n=n) for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert tr("zh", "ui.steps", n=1) == "1 步"


def test_missing_texts_fall_back(words):
    assert tr("ru", "ui.greeting", name="Ann") == "Hello, Ann"
    assert tr("ru", "message.slow", n=1, rate=2) == "1 step at 2"  # by the plural rule of English, not of Russian
    assert tr("de", "ui.greeting", name="Ann") == tr("../secret", "ui.greeting", name="Ann") == "Hello, Ann"
    assert tr("ru", "ui.no.such.key") == "ui.no.such.key"
    assert tr("en", "ui.greeting.deeper") == "ui.greeting.deeper"
    assert tr("en", "message") == "message"


def test_a_missing_argument_is_a_fault_of_ours(words):
    with pytest.raises(KeyError):
        tr("en", "ui.greeting")


def test_arguments_may_bear_any_name(words):
    assert tr("en", "ui.greeting", name="a", key="b", lang="c") == "Hello, a"


def test_messages_write_numbers_but_leave_names(words):
    assert message("en", "slow", {"n": 1200, "rate": 0.00012345}) == "1,200 steps at 1.23e-4"
    assert message("ru", "slow", {"n": 1, "rate": 2.5}) == "1 step at 2,5"
    assert message("en", "port", {"port": "7860"}) == "Port 7860 is taken"
    assert message("en", "unheard_of", {}) == "message.unheard_of"


@pytest.mark.parametrize(
    ("x", "en", "ru", "zh"),
    [
        (2.4049, "2.4", "2,4", "2.4"),
        (3119.7, "3,120", "3\xa0120", "3,120"),
        (1234567, "1,234,567", "1\xa0234\xa0567", "1,234,567"),
        (0.0998, "0.0998", "0,0998", "0.0998"),
        (0.001, "0.001", "0,001", "0.001"),
        (2e-4, "2e-4", "2e-4", "2e-4"),
        (-2.5e-5, "-2.5e-5", "-2,5e-5", "-2.5e-5"),
        (0.0009999, "1e-3", "1e-3", "1e-3"),
        (0.0, "0", "0", "0"),
        (float("nan"), "–", "–", "–"),
        (None, "–", "–", "–"),
    ],
)
def test_numbers(x, en, ru, zh):
    assert [number(lang, x) for lang in i18n.LANGUAGES] == [en, ru, zh]


@pytest.mark.parametrize(
    ("seconds", "en", "ru", "zh"),
    [
        (0, "0:00", "0:00", "0:00"),
        (47.6, "0:48", "0:48", "0:48"),
        (59.7, "1:00", "1:00", "1:00"),
        (3599.4, "59:59", "59:59", "59:59"),
        (3599.6, "1 h 0 min", "1 ч 0 мин", "1 小时 0 分钟"),
        (7800, "2 h 10 min", "2 ч 10 мин", "2 小时 10 分钟"),
        (86399, "1 d 0 h", "1 д 0 ч", "1 天 0 小时"),
        (273600, "3 d 4 h", "3 д 4 ч", "3 天 4 小时"),
        (None, "–", "–", "–"),
    ],
)
def test_durations(seconds, en, ru, zh):
    assert [duration(lang, seconds) for lang in i18n.LANGUAGES] == [en, ru, zh]


def test_sizes():
    assert [size("en", n) for n in (0, 512, 1023)] == ["0 B", "512 B", "1,023 B"]
    assert [size("en", n) for n in (1024, 23028 * 2**20)] == ["1 KiB", "22.5 GiB"]
    assert size("ru", 1.5 * 2**30) == "1,5 ГиБ"
    assert size("en", 2**60) == "1,050,000 TiB"


def test_moments_stand_in_the_readers_zone():
    epoch = 1_767_366_240  # 2026-01-02 15:04 UTC
    assert moment("en", epoch) == "2 Jan 2026, 15:04"
    assert moment("ru", epoch, "Europe/Moscow") == "2 янв. 2026, 18:04"
    assert moment("zh", epoch, "Asia/Shanghai") == "2026年1月2日 23:04"
    assert moment("en", epoch, "../../etc/passwd") == moment("en", epoch, "No/Such") == moment("en", epoch)


@pytest.mark.parametrize(
    ("header", "lang"),
    [
        (None, "en"),
        ("", "en"),
        ("*", "en"),
        ("de-DE,de;q=0.9", "en"),
        ("ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("zh-Hant-TW", "zh"),
        ("de, zh;q=0.4, ru;q=0.7", "ru"),
        ("ru;q=0, zh;q=0.1", "zh"),
        ("ru;q=high, zh", "zh"),
        (";;;,,q=1", "en"),
    ],
)
def test_pick(header, lang):
    assert pick(header) == lang


def test_the_import_brings_no_core():
    check = "import sys, app.i18n; sys.exit(any(name.split('.')[0] in ('core', 'gradio') for name in sys.modules))"
    assert run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize("huge", [1e308, -1e30, 10**25, 10**400, 2.59e12])
def test_huge_numbers_are_written_short(huge):
    for language in i18n.LANGUAGES:
        assert "e" in number(language, huge) and len(number(language, huge)) < 12
    assert number("en", 10**14) == "100,000,000,000,000" and number("en", 1.5e8) == "150,000,000"
