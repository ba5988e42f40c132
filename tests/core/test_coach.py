"""Advice from synthetic curves: each pattern is told, a healthy run is left alone."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from core.events import RunState
from core.messages import MESSAGES
from core.schema import variants
from core.stages import Stage
from core.training.coach import look

BETA, STAGES = ("beta",), cast(dict[str, type[Stage]], variants("core.stages"))


def state(points: list[dict[str, Any]], evals: dict[int, float] | None = None, total: int = 0) -> RunState:
    """Return the fold of a run with these step events and losses on held-out rows."""
    folded = RunState()
    folded.apply({"type": "phase", "phase": "train", "total": total or len(points)})
    for step, point in enumerate(points, 1):
        folded.apply({"type": "step", "time": float(step), "step": step, "total": total or len(points), **point})
        if evals and step in evals:
            folded.apply({"type": "eval", "time": float(step), "step": step, "set": "", "loss": evals[step]})
    return folded


def codes(folded: RunState) -> list[str]:
    return [found.code for found in look(folded, BETA)]


def healthy(count: int = 200) -> list[dict[str, Any]]:
    chance = random.Random(1)
    return [
        {"loss": 3 * 0.99**step * chance.uniform(0.9, 1.1), "grad_norm": chance.uniform(0.5, 1.5)}
        for step in range(count)
    ]


def metrics(count: int, **curves: Any) -> list[dict[str, Any]]:
    named = {name.replace("__", "/"): curve for name, curve in curves.items()}
    return [
        {"loss": 1 / (1 + step), "metrics": {name: curve(step) for name, curve in named.items()}}
        for step in range(count)
    ]


def test_a_healthy_run_gets_no_advice_at_any_step() -> None:
    points = healthy()
    for count in range(1, len(points), 7):
        evals = {step: 3 - step / 100 for step in range(10, 200, 10)}
        assert codes(state(points[:count], evals, len(points))) == []


CASES: dict[str, RunState] = {
    "coach.overfits": state(healthy(60), {10: 2.0, 20: 1.5, 30: 1.6, 40: 1.7, 50: 1.8}),
    "coach.spike": state([*healthy(100), {"loss": 20.0, "grad_norm": 1.0}]),
    "coach.explodes": state([*healthy(100), *[{"loss": 1.0, "grad_norm": 40.0}] * 3]),
    "coach.flat": state([{"loss": 2.0 + 0.001 * (step % 3), "grad_norm": 1.0} for step in range(60)], total=100),
    "coach.strays": state(metrics(30, objective__kl=lambda step: step, rewards__mean=lambda step: 0.5)),
    "coach.alike": state(metrics(30, rewards__mean=lambda step: 0.0, rewards__std=lambda step: 0.0)),
    "coach.lengthens": state(metrics(30, rewards__mean=lambda step: step, answers__length=lambda step: 20 + 3 * step)),
    "coach.less_likely": state(metrics(30, rewards__chosen=lambda step: -step, rewards__margins=lambda step: step / 2)),
}


@pytest.mark.parametrize("code", CASES)
def test_each_pattern_is_told(code: str) -> None:
    assert codes(CASES[code]) == [code]
    (found,) = look(CASES[code], BETA)
    assert "{" not in MESSAGES[code].format_map(found.params)


def test_only_stages_whose_rewards_are_likelihoods_are_told_that_answers_become_less_likely() -> None:
    falling = CASES["coach.less_likely"]
    for kind, stage in STAGES.items():
        told = [found.params["settings"] for found in look(falling, stage.likelier)]
        assert told == ([", ".join(stage.likelier)] if kind in ("cpo", "dpo", "kto", "orpo", "simpo") else [])
        assert set(stage.likelier) <= set(stage.model_fields)


def test_less_than_a_pattern_is_not() -> None:
    assert codes(state(healthy(60), {10: 2.0, 20: 1.5, 30: 1.6, 40: 1.7})) == []  # twice is chance
    assert codes(state(healthy(60), {10: 0.5, 20: 0.501, 30: 0.502, 40: 0.503})) == []  # a rise of less than 1 %
    assert codes(state([*healthy(100), *[{"loss": 1.0, "grad_norm": 40.0}] * 2])) == []
    assert codes(state([{"loss": 2.0, "grad_norm": 1.0}] * 60, total=1000)) == []  # hardly begun
    assert codes(state(metrics(30, rewards__mean=lambda step: -step, answers__length=lambda step: 20 + 3 * step))) == []
    assert codes(state(metrics(30, rewards__mean=lambda step: 0.0, rewards__std=lambda step: step % 3 == 0))) == []
    likely = metrics(30, rewards__chosen=lambda step: -13 + 0.1 * (step % 2), rewards__margins=lambda step: 0.5)
    assert codes(state(likely)) == []  # without a reference rewards are below zero from the first step on
    assert codes(state(metrics(30, rewards__chosen=lambda step: step, rewards__margins=lambda step: step))) == []
