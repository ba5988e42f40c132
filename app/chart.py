"""Curves as inline SVG: one drawing for any width, colours from the style sheet, numbers in the reader's language.

The plot is stretched to the width of the page (lines keep theirs by vector-effect); the numbers at its axes are HTML,
so that they stay readable on a phone. The page's script reads the scales from the data attributes for the read-out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app.i18n import number, tr
from core.series import Series

Bins = list[list[float]]
SIDE = 1000
"""Width and height of the drawing in its own units."""
END = 930
"""From here on a number below the plot would not fit in beside its middle."""


@dataclass(frozen=True)
class Curve:
    """One line: its class in the style sheet, its name for the reader, its bins (x, mean, low, high)."""

    style: str
    label: str
    bins: Bins
    dots: bool = False
    """Draw each point, too: there are few of them."""
    band: bool = False
    """Shade what the bins span."""


def thin(series: Series, most: int) -> Bins:
    """Return at most about `most` bins of a series, neighbours merged evenly; the last one is always there."""
    size = max(1, math.ceil(len(series.bins) / most))
    if size == 1:
        return series.bins
    groups = [series.bins[start : start + size] for start in range(0, len(series.bins), size)]
    return [[g[-1][0], sum(b[1] for b in g) / len(g), min(b[2] for b in g), max(b[3] for b in g)] for g in groups]


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return round numbers within low..high, at most `most` and one more, a step of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(language: str, title: str, curves: Sequence[Curve]) -> str:
    """Return a figure with axes for curves that share both; "" while there is no point."""
    drawn = [curve for curve in curves if curve.bins]
    if not drawn:
        return ""
    x0, x1, y0, y1 = _bounds(drawn)
    paths = "".join(_paths(curve, x0, x1, y0, y1) for curve in drawn)
    across, up = ticks(x0, x1, 6, whole=True), ticks(y0, y1, 4)
    grid = "".join(f'<path class="grid" d="M0,{_y(value, y0, y1)}H{SIDE}"/>' for value in up)
    left = "".join(f'<span style="top:{_y(v, y0, y1) / 10:g}%">{number(language, _tidy(v))}</span>' for v in up)
    below = "".join(_below(language, _x(v, x0, x1), v) for v in across)
    legend = "".join(f'<span class="tb-key {c.style}"><i></i>{escape(c.label)}</span>' for c in drawn)
    said = summary(language, title, drawn)
    return (
        f'<figure class="tb-chart tb-big"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<div class="tb-up" aria-hidden="true">{left}</div>'
        f"{_svg(said, grid + paths, (x0, x1, y0, y1))}"
        f'<div class="tb-across" aria-hidden="true">{below}</div></figure>'
    )


def _below(language: str, x: float, value: float) -> str:
    """Return the number below the plot; near its end the number ends there, else it would stand out of the page."""
    last = " class=tb-end" if x > END else ""
    return f'<span{last} style="left:{x / 10:g}%">{number(language, int(value))}</span>'


def small(language: str, label: str, value: str, bins: Bins) -> str:
    """Return a small figure: name, newest value, the shape of the curve; "" while there is no point."""
    if not bins:
        return ""
    curve = Curve("curve-smooth", label, bins)
    x0, x1, y0, y1 = _bounds([curve])
    said = summary(language, label, [curve])
    return (
        f'<figure class="tb-chart tb-small"><figcaption>{escape(label)} <b>{escape(value)}</b></figcaption>'
        f"{_svg(said, _paths(curve, x0, x1, y0, y1), (x0, x1, y0, y1))}</figure>"
    )


def spark(label: str, bins: Bins) -> str:
    """Return the bare shape of a curve for a line of a table; "" while there is no point."""
    if not bins:
        return ""
    curve = Curve("curve-smooth", label, bins)
    bounds = _bounds([curve])
    return f'<span class="tb-chart tb-spark">{_svg(label, _paths(curve, *bounds), None)}</span>'


def summary(language: str, title: str, curves: Sequence[Curve]) -> str:
    """Return what the curves show in words, for those who do not see them."""
    told = []
    for curve in curves:
        first, last = curve.bins[0], curve.bins[-1]
        lowest = min(curve.bins, key=lambda b: b[2])
        told.append(
            tr(
                language,
                "ui.live.curve_told",
                name=curve.label,
                start=number(language, float(first[1])),
                end=number(language, float(last[1])),
                step=number(language, int(last[0])),
                low=number(language, float(lowest[2])),
            )
        )
    return f"{title}. " + " ".join(told)


def _svg(said: str, inner: str, bounds: tuple[float, float, float, float] | None) -> str:
    scale = f' data-scale="{" ".join(f"{b:.6g}" for b in bounds)}"' if bounds else ""
    return (
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" aria-label="{escape(said)}"{scale}>'
        f"{inner}</svg>"
    )


def _paths(curve: Curve, x0: float, x1: float, y0: float, y1: float) -> str:
    points = [(_x(b[0], x0, x1), _y(b[1], y0, y1)) for b in curve.bins]
    line = "M" + "L".join(f"{x},{y}" for x, y in points)
    name = f' data-name="{escape(curve.label)}"' if curve.label else ""
    drawn = ""
    if curve.band:
        over = "L".join(f"{_x(b[0], x0, x1)},{_y(b[3], y0, y1)}" for b in curve.bins)
        under = "L".join(f"{_x(b[0], x0, x1)},{_y(b[2], y0, y1)}" for b in reversed(curve.bins))
        drawn = f'<path class="{curve.style} tb-band" d="M{over}L{under}Z"/>'
    if len(points) == 1:
        line += "h0"
    drawn += f'<path class="{curve.style}"{name} d="{line}"/>'
    if curve.dots or len(points) == 1:
        # A line of no length with round ends stays a circle however the drawing is stretched.
        drawn += f'<path class="{curve.style} tb-dots" d="{"".join(f"M{x},{y}h0" for x, y in points)}"/>'
    return drawn


def _bounds(curves: Sequence[Curve]) -> tuple[float, float, float, float]:
    """Return the ranges of x and y that hold every mean, a little air above and below."""
    xs = [b[0] for curve in curves for b in curve.bins]
    ys = [b[1] for curve in curves for b in curve.bins]
    low, high = min(ys), max(ys)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    floor = 0.0 if low >= 0 and low - air < 0 else low - air
    return min(xs), max(max(xs), min(xs) + 1), floor, high + air


def _x(value: float, low: float, high: float) -> int:
    return round((value - low) / (high - low) * SIDE)


def _y(value: float, low: float, high: float) -> int:
    return round((1 - min(1.0, max(0.0, (value - low) / (high - low)))) * SIDE)


def _tidy(value: float) -> float | int:
    """Return 2.0 as 2: an axis reads better so."""
    return int(value) if float(value).is_integer() and abs(value) < 1e6 else value
