"""Imports of large libraries, which make objects by the million that stay until the end."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quickly() -> Iterator[None]:
    """Keep the garbage collector from what is imported within the block, then and later.

    It would go through all of it again and again, and once more at the end: a third of the CPU time of a short run.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
