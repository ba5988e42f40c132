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
    "coach.rises": state(
        [{"loss": loss, "grad_norm": 1.0} for loss in (6.4, 6.5, 148.0, *[24.0, 28.0, 22.0, 26.0] * 5)], total=100
    ),
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


def test_a_jump_that_is_small_for_the_run_is_none() -> None:
    """A loss that has come down from 6.4 to almost nothing may be three times as large for a step."""
    down = [{"loss": max(6.4 * 0.9**step, 0.003) + 0.001 * (step % 2), "grad_norm": 1.0} for step in range(98)]
    assert codes(state([*down, {"loss": 0.014, "grad_norm": 1.0}])) == []
    assert codes(state([*down, {"loss": 0.5, "grad_norm": 1.0}])) == ["coach.spike"]


def test_noise_above_a_low_beginning_is_no_rise() -> None:
    chance = random.Random(1)
    points = [{"loss": loss, "grad_norm": 1.0} for loss in (0.3, *(chance.uniform(0.4, 2.5) for _ in range(100)))]
    assert all(
        "coach.rises" not in codes(state(points[:count], total=1000)) for count in range(1, 101)
    )  # as from small batches


def test_no_advice_to_learn_faster_comes_with_advice_to_learn_slower() -> None:
    flat = [{"loss": 4.1 + 0.01 * (step % 2), "grad_norm": 1.0} for step in range(60)]
    assert codes(state(flat)) == ["coach.flat"]
    assert codes(state(flat, {10: 3.7, 20: 4.6, 30: 6.0, 40: 7.0})) == ["coach.overfits"]
    unlikely = metrics(60, rewards__chosen=lambda step: -step, rewards__margins=lambda step: step / 2)
    assert codes(state([point | {"loss": 4.1} for point in unlikely])) == ["coach.less_likely"]
    before = state(flat)
    before.apply({"type": "warning", "time": 1.0, "code": "coach.spike", "place": "optimizer", "params": {}})
    assert codes(before) == []  # each thing is told once, and stays told
    down_and_up = [{"loss": 4.1 - abs(3 - abs(step - 30) / 10), "grad_norm": 1.0} for step in range(60)]
    assert codes(state(down_and_up)) == []


def test_the_loss_of_what_is_drawn_is_not_looked_at() -> None:
    rewarded = {"metrics": {"rewards/mean": 0.5}}
    for case in ("coach.rises", "coach.spike", "coach.flat"):
        losses = [mean for _, mean, *_ in CASES[case].curves["loss"].bins]
        assert codes(state([{"loss": loss, **rewarded} for loss in losses])) == []
