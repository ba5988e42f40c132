"""Regular expressions that people set: Python's language, read by an engine that gives up in time. Cold.

The engine (regex) takes braces for an approximate match and [: for a class of POSIX where Python sees plain text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import prod

import regex

OTHERWISE = re.compile(r"(\\N\{[^}]*\}|\\.|\{(?=[0-9,])[0-9]*,?[0-9]*\})|\{|\[:", re.DOTALL)
"""What the engine may take otherwise than Python, past what both take alike: escapes and counts."""
COUNT, MOST = re.compile(r"\{([1-9][0-9]*)"), 100_000
"""The least of a count; and how many copies of what counts within counts repeat may be made: 30 MB."""


@lru_cache(maxsize=1 << 10)
def translated(pattern: str) -> str:
    """Return a regular expression of Python so that the engine means the same by it."""
    return OTHERWISE.sub(lambda found: found[1] or found[0][:-1] + "\\" + found[0][-1], pattern)


def compiled(pattern: str) -> regex.Pattern[str]:
    """Return what finds a regular expression of Python; raise ValueError, which says why, for what is none."""
    try:
        re.compile(pattern)
        if prod(map(int, COUNT.findall(pattern))) > MOST:
            raise OverflowError("the repetition numbers are too large")
        return regex.compile(translated(pattern))
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
