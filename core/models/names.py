"""Names of weights in messages. Cold."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 5
"""Names in a message at most."""


def shorten(names: Iterable[str]) -> str:
    """Return the first names in order, and how many more there are."""
    ordered = sorted(names)
    more = f", … (+{len(ordered) - SHOWN})" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
