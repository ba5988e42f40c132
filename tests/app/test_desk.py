"""Questions about data: a browser waits for one at a time, and none goes on that nobody waits for."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.desk import Questions, ask
from core.errors import InputError
from tests.conftest import write_rows


@pytest.fixture
def large(tmp_path: Path) -> dict[str, Any]:
    rows = [{"instruction": f"question {i} of many", "output": f"answer {i}"} for i in range(60_000)]
    write_rows(tmp_path / "large.jsonl", rows)
    write_rows(tmp_path / "small.jsonl", rows[:3])
    return {"folder": str(tmp_path)}


def desks() -> list[psutil.Process]:
    """Return the processes that answer; one that has just ended, and waits to be told of, is none."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "core.data.desk" in child.cmdline():
                found.append(child)
    return found


def test_a_new_question_ends_the_one_before(tmp_path: Path, large: dict[str, Any]) -> None:
    questions, seen = Questions(), []
    report = partial(ask, "report", tmp_path, {**large, "train": ["large.jsonl"]})
    thread = threading.Thread(target=lambda: seen.extend(questions.ask("one", report)))
    thread.start()
    while not desks():
        time.sleep(0.01)
    other = list(questions.ask("two", partial(ask, "inspect", tmp_path, {**large, "train": ["small.jsonl"]})))
    assert other[-1]["rows"] == 3 and desks(), "another browser's question is left alone"
    found = list(questions.ask("one", partial(ask, "inspect", tmp_path, {**large, "train": ["small.jsonl"]})))
    thread.join(20)
    assert not thread.is_alive() and found[-1]["rows"] == 3
    assert not any(isinstance(answer, dict) for answer in seen) and not desks()


def test_a_question_that_nobody_listens_to_ends(tmp_path: Path, large: dict[str, Any]) -> None:
    asked = Questions().ask("one", partial(ask, "report", tmp_path, {**large, "train": ["large.jsonl"]}))
    assert isinstance(next(asked), int)
    asked.close()
    for child in desks():
        child.wait(10)
    assert not desks()


def test_what_is_wrong_reaches_who_asked(tmp_path: Path, large: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        list(Questions().ask("one", partial(ask, "page", tmp_path, {**large, "train": ["none.jsonl"]})))
    assert caught.value.code == "data.unknown_set"
