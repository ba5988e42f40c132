"""Gradio, imported without what a board does not need: half the time, no word to anybody, nothing written."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Read by gradio and by the hub's client when they are imported.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def without_stubs() -> Iterator[None]:
    """Keep gradio from comparing and writing a .pyi file beside each of its components.

    It does so at every import, for the editors of its developers: some 1.5 s, and a write into site-packages. It passes
    over classes that have no file.
    """
    find = inspect.getfile

    def no_file(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no stub file wanted")
        return find(thing)

    inspect.getfile = no_file
    try:
        yield
    finally:
        inspect.getfile = find


@contextmanager
def growing() -> Iterator[None]:
    """Let no garbage collector run while there is none: imports and the page's building only ever add (some 0.3 s)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


with growing(), without_stubs():
    import gradio as gr

__all__ = ["gr", "growing"]
