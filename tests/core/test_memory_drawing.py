"""The memory planner where a model learns from answers that it draws itself (PPO and GRPO)."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import config
from core.forecast import TIGHT, foresee
from core.models.memory import plan
from core.models.room import Room
from tests.core.test_memory import model_of, run_of, shapes_of

GROUP = ["stage.kind=grpo", "stage.group=16", "stage.reward.by=length", "stage.reward.length=8"]


@pytest.mark.parametrize("stage", [GROUP, ["stage.kind=ppo"]])
def test_fewer_answers_at_once_make_a_run_fit(stage: list[str], tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    run = run_of(*stage, "training.batch_size=64", "stage.drawing.max_new_tokens=8")
    free = int(1.2 * plan(run_of(*stage, "training.batch_size=2", "stage.minibatch=1"), shapes, "cuda").peak)
    found = foresee(run, shapes, 0, Room("cuda", free, free))
    assert found.verdict == "too_large" and {*found.fixes[0].patch} == {"stage.minibatch"}
    for fix in found.fixes:
        changed = config.run(run.model_dump(), config.nest(fix.patch))
        assert plan(changed, shapes, "cuda").peak == fix.plan.peak <= TIGHT * free
