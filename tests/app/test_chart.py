"""The charts: round ticks, few bytes, words for those who do not see, nothing of the reader's that becomes markup."""

import re

import pytest

from app.chart import SIDE, Curve, chart, small, spark, thin, ticks
from core.series import Series


def series(count: int) -> Series:
    made = Series()
    for step in range(1, count + 1):
        made.add(step, 3.0 / step + (step % 7) / 50)
    return made


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.94), (-3, 12), (1e-8, 3e-8), (0, 123456), (5, 5)])
def test_ticks_are_few_and_within(low, high):
    found = ticks(low, high, 5)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-9 <= tick <= high * 1.0000001 for tick in found)


def test_steps_have_whole_ticks():
    assert ticks(1, 3, 6, whole=True) == [1, 2, 3]


def test_a_number_at_the_end_of_the_axis_does_not_stand_out():
    told = re.findall(
        r"<span([^>]*)>([^<]*)</span>", chart("en", "Loss", [Curve("c", "x", [[0, 1, 1, 1], [10_000, 2, 2, 2]])])
    )
    assert [text for attributes, text in told if "tb-end" in attributes] == ["10,000"]


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 5000])
def test_thin_keeps_the_last_point_and_the_extremes(count):
    made = series(count)
    bins = thin(made, 256)
    assert len(bins) <= 256
    assert bins[-1][0] == count
    assert min(b[2] for b in bins) == min(b[2] for b in made.bins)
    assert max(b[3] for b in bins) == max(b[3] for b in made.bins)


def test_points_lie_within_the_drawing():
    html = chart("en", "Loss", [Curve("curve-raw", "training", thin(series(3000), 256), band=True)])
    numbers = [int(n) for path in re.findall(r' d="([^"]+)"', html) for n in re.findall(r"-?\d+", path)]
    assert min(numbers) >= 0 and max(numbers) <= SIDE


def test_a_chart_of_a_million_points_is_small():
    made = Series(bins=[[float(x), 1.0 / (x + 1), 0.0, 2.0] for x in range(512)], width=4096)
    assert len(chart("en", "Loss", [Curve("curve-raw", "training", thin(made, 256), band=True)])) < 10_000


def test_a_single_point_is_drawn_as_a_dot():
    html = chart("en", "Loss", [Curve("curve-eval", "held out", [[10, 0.5, 0.5, 0.5]], dots=True)])
    assert "tb-dots" in html and "nan" not in html.lower()


def test_no_points_no_chart():
    assert chart("en", "Loss", [Curve("curve-raw", "training", [])]) == ""
    assert small("en", "Loss", "1", []) == "" and spark("Loss", []) == ""


def test_what_it_shows_is_told_in_words_and_in_the_language():
    bins = [[1, 2.5, 2.5, 2.5], [2, 1.25, 1.25, 1.25]]
    told = re.search(r'aria-label="([^"]+)"', chart("ru", "Loss", [Curve("curve-raw", "training", bins)]))
    assert told and "2,5" in told[1] and "1,25" in told[1]


def test_names_are_no_markup():
    html = chart("en", "<i>", [Curve("curve-raw", '"><script>', [[1, 1, 1, 1]])])
    assert "<script>" not in html and "<i>L" not in html
