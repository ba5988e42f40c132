"""Killed at any step, killed within a save, stopped: a resumed run learns bit for bit what an unbroken one learns."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.checkpoints import MANIFEST
from tests.conftest import ROOT, write_rows
from tests.core.helpers import digest, of_type
from tests.core.test_preference import FEEDBACK, PAIRS
from tests.exact.forks import TOUCHED

Ask = Callable[..., int]
STEPS = 7
TEXTS = [{"text": "red pen for Anna " * (1 + i % 5)} for i in range(30)]
DRAWING = ["stage.drawing.max_new_tokens=6", "stage.reward.by=length", "stage.reward.length=5"]
STAGES: dict[str, list[str]] = {
    "pt": ["data.train=[texts.jsonl]", "data.cutoff=32"],
    "sft": ["data.train=[orders.jsonl, chats]", "data.eval_share=0.1"],
    "rm": ["data.train=[pairs.jsonl]"],
    "dpo": ["data.train=[pairs.jsonl]"],
    "orpo": ["data.train=[pairs.jsonl]"],
    "simpo": ["data.train=[pairs.jsonl]"],
    "cpo": ["data.train=[pairs.jsonl]"],
    "kto": ["data.train=[feedback.jsonl]"],
    "ppo": ["data.train=[orders]", *DRAWING, "stage.kl_target=3", "stage.minibatch=3", "stage.normalize=true"],
    "grpo": ["data.train=[orders]", *DRAWING, "stage.group=2"],
}
TUNERS: dict[str, list[str]] = {
    "full": ["tuner=full", "optimizer.learning_rate=0.001"],
    "lora": ["tuner.dropout=0.1"],
    "dora": ["tuner.dora=true", "tuner.dropout=0.1"],
    "qlora": ["model.quantizer=bnb_4bit", "tuner.dropout=0.1"],
}
WAYS: dict[str, list[str]] = {
    "stream": ["data.train=[orders, chats]", "data.streaming=true", "data.buffer=8"],
    "streamed pairs": ["stage=kto", "data.train=[feedback.jsonl]", "data.streaming=true", "data.buffer=4"],
    "mixture": ["data.train=[orders, chats]", "data.mix=interleave_over", "training.accumulation=2"],
    "packed": ["data.packing=always", "data.cutoff=64"],
    "precomputed": ["stage=dpo", "data.train=[pairs.jsonl]", "stage.precompute=true"],
    "shift": ["stage=dpo", "data.train=[pairs.jsonl]", "stage.loss=bco_pair"],
    "best": ["watching.best=true", "training.eval_every=1", "data.eval_share=0.1"],
}
"""Of sft with LoRA, but for what they say."""


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """`ask(folder, step=3, signal=9)`: do a run in a process that ends so; return its exit status."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, "-m", "tests.exact.forks"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, env=environment, text=True)  # fmt: skip
    assert server.stdin and server.stdout
    asked, answers = server.stdin, server.stdout

    def one(folder: Path, **end: Any) -> int:
        print(json.dumps({"folder": str(folder), **end}), file=asked, flush=True)
        return json.loads(answers.readline())

    yield one
    asked.close()
    server.wait(60)


@pytest.fixture
def rows(tiny_data: Path) -> None:
    write_rows(tiny_data / "pairs.jsonl", PAIRS)
    write_rows(tiny_data / "feedback.jsonl", FEEDBACK)
    write_rows(tiny_data / "texts.jsonl", TEXTS)


def checkpoint(folder: Path) -> int:
    """Return the step of the newest checkpoint that is whole."""
    found = (folder / "checkpoints").glob(f"checkpoint-*/{MANIFEST}")
    return max((int(path.parent.name.rpartition("-")[2]) for path in found), default=0)


def told(folder: Path, type_: str) -> list[tuple[Any, ...]]:
    """Return what is known of each step, or of each evaluation, as often as it was told."""
    return [(e["step"], e["loss"], e.get("grad_norm"), e.get("metrics")) for e in of_type(folder, type_)]


def breaks(make_run: Callable[..., Path], ask: Ask, name: str, settings: list[str]) -> None:
    """Compare a run that is not broken with one that is killed within a save, killed at a step and stopped."""
    chance = random.Random(zlib.crc32(name.encode()))  # each name its own places, the same each time
    given = ["data.eval_share=0", f"training.max_steps={STEPS}", "training.batch_size=2", "saving.every=2", *settings]
    whole, broken = make_run("whole", *given), make_run("broken", *given)
    assert ask(whole) == 0, (whole / "console.log").read_text()
    touches = int((whole / TOUCHED).read_text())

    assert ask(broken, touch=chance.randint(1, touches)) == -signal.SIGKILL
    at = min(checkpoint(broken) + chance.randint(1, 3), STEPS)
    assert ask(broken, step=at, signal=signal.SIGKILL) == (-signal.SIGKILL if checkpoint(broken) < STEPS else 0)
    at = min(checkpoint(broken) + 1, STEPS - 1)
    assert ask(broken, step=at, signal=signal.SIGTERM) in (20, 0)
    assert ask(broken) == 0, (broken / "console.log").read_text()

    for type_ in ("step", "eval"):
        wanted = set(map(repr, told(whole, type_)))
        assert set(map(repr, told(broken, type_))) == wanted and (wanted or type_ == "eval")
    saved = "model" if "tuner=full" in settings else "adapter"
    assert digest(broken / saved) == digest(whole / saved)


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage(make_run: Callable[..., Path], rows: None, ask: Ask, stage: str, tuner: str) -> None:
    breaks(make_run, ask, f"{stage} {tuner}", [f"stage={stage}", *STAGES[stage], *TUNERS[tuner]])


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_data(make_run: Callable[..., Path], rows: None, ask: Ask, way: str) -> None:
    breaks(make_run, ask, way, ["tuner.dropout=0.1", *WAYS[way]])
