"""Texts, plurals, numbers and times in the reader's language.

The words live in locales/<lang>.json as nested objects, whose keys are joined by dots. `python -m app.i18n` writes
locales/en.json anew from the docstrings of core; its part "ui", the words of the board itself, is kept by hand.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from babel import Locale
from babel.dates import format_datetime
from babel.numbers import format_decimal

LANGUAGES = ("en", "ru", "zh")
FALLBACK = "en"
FOLDER = Path(__file__).parent.parent / "locales"
ABSENT = "–"  # shown for a number that is not there: None, NaN or infinite

PLURALS = {"zero", "one", "two", "few", "many", "other"}  # the categories of CLDR
SMALLEST = 1e-3  # anything nearer to zero is written as 2e-4
HUGE, LARGEST = 1e9, 10**15  # a float and an int from which on 2.59e12 is written
UNITS = ("b", "kib", "mib", "gib", "tib")
LANGUAGE_RANGE = re.compile(r"\s*([a-zA-Z]{1,8})(?:-[\w-]+)?\s*(?:;\s*q=([01](?:\.\d{0,3})?))?\s*")


@cache
def table(lang: str) -> dict:
    """The nested texts of one language, read once."""
    return json.loads((FOLDER / f"{lang}.json").read_text(encoding="utf-8"))


@cache
def locale(lang: str) -> Locale:
    return Locale.parse(lang)


def known(lang: str) -> str:
    """`lang` itself if we speak it, else English. The value may come from a browser and becomes a file name."""
    return lang if lang in LANGUAGES else FALLBACK


def tr(lang: str, key: str, /, **args) -> str:
    """The text of `key` with its {placeholders} filled; English where the language lacks it, else the key itself.

    A text with plural forms is chosen by the argument `n`.
    """
    return fill(lang, key, args, args)


def message(lang: str, code: str, params: Mapping) -> str:
    """The text of an error, warning or phase code of core, with its numbers written as the language writes them."""
    shown = {name: number(lang, value) if is_number(value) else value for name, value in params.items()}
    return fill(lang, f"message.{code}", params, shown)


def fill(lang: str, key: str, args: Mapping, shown: Mapping) -> str:
    """The text of `key`: its plural form by the raw `args`, its placeholders from `shown`."""
    for candidate in dict.fromkeys((known(lang), FALLBACK)):
        template = find(candidate, key, args.get("n"))
        if template is not None:
            return template.format_map(shown)
    return key


def find(lang: str, key: str, n: float | None) -> str | None:
    """The template of `key` in this very language, or None. What a kind lacks is looked for where all kinds have it."""
    above, node = None, table(lang)
    for part in key.split("."):
        places = (place for place in (node, above) if isinstance(place, dict) and part in place)
        above, node = node, next((place[part] for place in places), None)
    if isinstance(node, dict) and n is not None and "other" in node and PLURALS.issuperset(node):
        node = node.get(locale(lang).plural_form(abs(n)), node["other"])
    return node if isinstance(node, str) else None


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(lang: str, x: float | None) -> str:
    """`x` with the separators of the language: an int exactly, a float to three digits, tiny and huge ones as 2e-4."""
    if x is None or (isinstance(x, float) and not math.isfinite(x)):
        return ABSENT
    spoken = locale(known(lang))
    if isinstance(x, int) and abs(x) < LARGEST:
        return format_decimal(x, locale=spoken)
    if x and not SMALLEST <= abs(x) < (LARGEST if isinstance(x, int) else HUGE):
        mantissa, exponent = f"{Decimal(x):.2e}".split("e")
        return f"{format_decimal(Decimal(mantissa), locale=spoken)}e{int(exponent)}"
    return format_decimal(float(f"{x:.3g}"), locale=spoken, decimal_quantization=False)


def duration(lang: str, seconds: float | None) -> str:
    """0:48 below an hour, then 2 h 10 min, then 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    whole = max(0, round(seconds))
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    minutes = round(whole / 60)
    if minutes < 24 * 60:
        return tr(lang, "ui.unit.hours", hours=minutes // 60, minutes=minutes % 60)
    hours = round(minutes / 60)
    return tr(lang, "ui.unit.days", days=hours // 24, hours=hours % 24)


def language_name(lang: str, code: str) -> str:
    """Return what a language (ISO 639) is called in another: ("ru", "en") -> английский."""
    return locale(known(lang)).languages.get(code, code)


def size(lang: str, bytes: float) -> str:
    """A size in binary units, those of torch and nvidia-smi: 512 B, 1.5 GiB."""
    power = min(int(math.log2(bytes)) // 10, len(UNITS) - 1) if bytes >= 1 else 0
    return tr(lang, f"ui.unit.{UNITS[power]}", size=number(lang, bytes / 1024**power if power else int(bytes)))


def moment(lang: str, epoch_seconds: float, tz: str | None = None) -> str:
    """Date and time of day in the zone `tz`, an IANA name told by the browser; UTC when it is none."""
    try:
        zone = ZoneInfo(tz) if tz else UTC
    except (ZoneInfoNotFoundError, ValueError):  # ValueError: a name that leads out of the zone folder
        zone = UTC
    return format_datetime(datetime.fromtimestamp(epoch_seconds, zone), tr(lang, "ui.moment"), locale=known(lang))


def pick(accept_language: str | None) -> str:
    """The language we speak that an Accept-Language header likes most, or English."""
    ranges = (LANGUAGE_RANGE.fullmatch(part) for part in (accept_language or "").split(","))
    wishes = [(float(found[2] or 1), found[1].lower()) for found in ranges if found]
    spoken = [(weight, lang) for weight, lang in wishes if weight > 0 and lang in LANGUAGES]
    return max(spoken, key=lambda wish: wish[0], default=(0, FALLBACK))[1]


def english() -> dict:
    """What locales/en.json should hold: the board's own words kept, all else taken from core."""
    from core.texts import texts  # only the generator and its test need core

    return {"ui": table(FALLBACK)["ui"], **texts()}


def main() -> None:
    """Write locales/en.json."""
    content = json.dumps(english(), ensure_ascii=False, indent=2) + "\n"
    (FOLDER / f"{FALLBACK}.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
