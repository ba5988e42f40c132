"""The card of what was trained: text stays text, and figures are what they are called."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import yaml

from core import config
from core.config import Run
from core.export.card import trained

METRICS = {"loss": 1.5, "step": 4, "epoch": 1.0, "tokens": 100}


def card(run: Run, **metrics: float) -> tuple[dict[str, Any], str]:
    """Return the header and the rest of the card of a run that saved an adapter."""
    made = trained(run, METRICS | metrics, whole=False, sees=False)
    header, _, text = made.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(header), text


@pytest.mark.parametrize("path", ['m"); print("PWNED"); x = ("', "a|b`<img src=x onerror=alert(1)>`", "a\\|b\n---\n"])
def test_the_path_of_a_model_is_no_markup_and_no_code(path: str) -> None:
    header, text = card(config.run({"model": {"path": path}, "data": {"train": ["orders"]}}))
    assert header["base_model"] == path
    calls = [node for node in ast.walk(ast.parse(text.split("```python\n")[1].split("```")[0]))
             if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained")]  # fmt: skip
    folder = "PATH OF THIS FOLDER"
    assert [ast.literal_eval(node.args[-1]) for node in calls] == [folder, path, folder]
    (line,) = [line for line in text.splitlines() if line.startswith("| Base |")]
    assert "<" not in line and line.replace("\\\\", "").replace("\\|", "").replace("\\`", "").count("|") == 3
    assert line.replace("\\`", "").count("`") == 0
