"""A run that was stopped and resumed ends bit for bit like one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import Stopped
from core.events import fold
from tests.core.helpers import digest, of_type, train

TUNERS = {
    "lora": ["tuner.dropout=0.2", "training.max_steps=12"],
    "dora": ["tuner.dora=true", "training.group_by_length=false"],
    "pissa": [
        "tuner.pissa=true",
        "tuner.dora=true",
        "tuner.rslora=true",
        "training.accumulation=2",
        "training.max_steps=8",
    ],
    "full": ["tuner.kind=full"],
    "freeze": ["tuner.kind=freeze", "tuner.layers=1"],
}


@pytest.mark.parametrize(("name", "stops"), [
    ("lora", (6, 9)), ("dora", (3,)), ("pissa", (3, 5)), ("full", (6,)), ("freeze", (9,)),
])  # fmt: skip
def test_resume_is_bit_exact(make_run: Callable[..., Path], name: str, stops: tuple[int, ...]) -> None:
    """36 rows in batches of 4 make epochs of 9 steps (5 when two are accumulated): stops within, at the end, after."""
    whole, broken = make_run("whole", *TUNERS[name]), make_run("broken", *TUNERS[name])
    expected = train(whole)
    for stop in stops:
        with pytest.raises(Stopped):
            train(broken, stop_at=stop)
        assert (broken / f"checkpoints/checkpoint-{stop}/MANIFEST.json").exists()
    assert train(broken) == expected
    saved = "model" if name in ("full", "freeze") else "adapter"
    assert digest(broken / saved) == digest(whole / saved)
    steps = {e["step"]: (e["loss"], e["grad_norm"], e["lr"]) for e in of_type(broken, "step")}
    assert steps == {e["step"]: (e["loss"], e["grad_norm"], e["lr"]) for e in of_type(whole, "step")}
    assert [b[:2] for b in fold(broken)[0].curves["loss"].bins] == [b[:2] for b in fold(whole)[0].curves["loss"].bins]
