"""Reads what an evaluation wrote: metrics.json, and answers.jsonl row by row, never the whole file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

BASE = "base"
METRICS = {"exact_match": True, "bleu": True, "rouge_l": True, "rouge1": True, "rouge2": True, "perplexity": False}
"""Every metric in the order of display, and whether more is better."""
SHOWN = ("exact_match", "bleu", "rouge_l", "perplexity")
"""The metrics of the short tables."""
FILTERS = ("all", "wrong", "changed")


def measured(folder: Path) -> dict[str, dict[str, float | None]]:
    """Return {subject: {metric: value}} of an evaluation, {} before it is done."""
    try:
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def best(metrics: dict[str, dict[str, float | None]], metric: str) -> set[str]:
    """Return the subjects whose value of a metric is the best; none where all are the same or only one is there."""
    values = {name: value for name, row in metrics.items() if (value := row.get(metric)) is not None}
    if len(set(values.values())) < 2:
        return set()
    top = (max if METRICS[metric] else min)(values.values())
    return {name for name, value in values.items() if value == top}


def rows(folder: Path, wanted: str = "all", first: int = 0, count: int = 20) -> list[dict[str, Any]]:
    """Return at most `count` rows of a filter (all, wrong, changed), from the `first` that fits on."""
    return list(islice((row for row in _rows(folder) if fits(row, wanted)), first, first + count))


def tally(folder: Path) -> dict[str, int]:
    """Return how many rows each filter lets through."""
    counts: dict[str, int] = dict.fromkeys(FILTERS, 0)
    for row in _rows(folder):
        for wanted in FILTERS:
            counts[wanted] += fits(row, wanted)
    return counts


def fits(row: dict[str, Any], wanted: str) -> bool:
    """Say whether a row belongs to a filter: wrong = some tuned model (or the lone base) missed it; changed = right
    became wrong or wrong became right by tuning."""
    exact = row["exact"]
    tuned = [value for name, value in exact.items() if name != BASE] or list(exact.values())
    if wanted == "wrong":
        return not all(tuned)
    return wanted == "all" or any(value != exact.get(BASE) for value in tuned)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "answers.jsonl"
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
