"""What is imported for a run: no compiler, and what was to be compiled is compiled when it is called."""

import subprocess
import sys

import pytest
import torch

from core.imports import quickly

LOADED = """
import sys
from core.imports import quickly
with quickly():
    from core.training import course
print("bitsandbytes" in sys.modules, "torch._inductor.compile_fx" in sys.modules, "trl" in sys.modules)
"""


def test_a_run_loads_no_compiler_that_it_does_not_call() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]  # peft imports the first


def test_functions_are_compiled_once_when_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compiles(function, **how):
        asked.append((function.__name__, how))
        return lambda number: function(number) + 1

    monkeypatch.setattr(torch, "compile", compiles)
    with quickly():

        @torch.compile
        def plain(number: int) -> int:
            """Twice."""
            return number * 2

        @torch.compile(dynamic=False)
        def told(number: int) -> int:
            return number * 3

    assert (torch.compile, asked, plain.__doc__) == (compiles, [], "Twice.")
    assert [plain(1), plain(2), told(1)] == [3, 5, 4]
    assert asked == [("plain", {}), ("told", {"dynamic": False})]
