"""Imports of large libraries, which make objects by the million that stay, and compile what few runs will call."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from inspect import isfunction
from typing import Any


@contextmanager
def quickly() -> Iterator[None]:
    """Keep the garbage collector from what is imported within the block, then and later; compile it when it is called.

    The collector would go through all of it again and again, and once more at the end: a third of the CPU time of a
    short run. `torch.compile` imports the compiler as soon as it is asked, and bitsandbytes, which peft imports, asks
    at once: a fifth of the time until a run begins, for functions that most runs never call.
    """
    gc.disable()
    import torch

    compiles = torch.compile
    torch.compile = partial(_at_first_call, compiles)
    try:
        yield
    finally:
        torch.compile = compiles
        gc.freeze()
        gc.enable()


def _at_first_call(compiles: Callable[..., Any], function: Any = None, **how: Any) -> Any:
    """`torch.compile`, which does nothing with a function before that is called."""
    if function is None:
        return partial(_at_first_call, compiles, **how)
    if not isfunction(function):
        return compiles(function, **how)
    compiled = cache(lambda: compiles(function, **how))
    return wraps(function)(lambda *args, **named: compiled()(*args, **named))
