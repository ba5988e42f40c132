"""The memory planner where a model learns from answers that it draws itself (PPO and GRPO)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core import config
from core.forecast import TIGHT, foresee
from core.models.drawn import WORD_BYTES, cached
from core.models.memory import LOGIT_BYTES, plan
from core.models.room import Room
from tests.core.test_memory import ROWS, WORDS, model_of, run_of, shapes_of

GROUP = ["stage.kind=grpo", "stage.group=16", "stage.reward.by=length", "stage.reward.length=8"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma3_text", "deepseek_v2", "minicpm3"])
def test_what_a_cache_holds(kind: str, tmp_path: Path) -> None:
    model: Any = model_of(kind)
    more = {"min_new_tokens": 5, "max_new_tokens": 5, "return_dict_in_generate": True}
    said = model.generate(torch.arange(3, 3 + 2 * 8).view(2, 8), do_sample=False, **more)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in said.past_key_values.layers)
    assert said.sequences.shape[1] == 8 + 5
    assert 4 * cached(shapes_of(model, tmp_path))[0] * 2 * (8 + 5 - 1) == held  # the last token is never read


def test_all_answers_of_a_step_are_drawn_at_once(tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    asked = 24
    words = [*GROUP, "stage.minibatch=2", "stage.drawing.max_new_tokens=100", f"data.cutoff={asked}"]
    one, more = (plan(run_of(*words, f"stage.group={group}"), shapes, "cuda") for group in (8, 64))
    assert (
        one.drawing == ROWS * 8 * (4 * sum(cached(shapes)) * (asked - 1 + 100 - 1) + WORD_BYTES * WORDS)
        and more.drawing == 8 * one.drawing
    )
    assert more.peak == more.lasting + more.drawing and more.activations == one.activations
    assert one.tokens == 2 * (asked - 1 + 100) and one.logits == LOGIT_BYTES * 2 * 100 * WORDS
    to_the_end = plan(run_of(*words, "stage.drawing.max_new_tokens=9999"), shapes, "cuda")
    assert to_the_end.tokens == 2 * 256  # where the context of the model ends
    longer = plan(
        run_of(*words, "stage.drawing.max_new_tokens=9999", "model.rope=yarn", "model.context=512"), shapes, "cuda"
    )
    assert longer.tokens == 2 * 512
    assert plan(run_of(), shapes, "cuda").drawing == 0


def test_a_copy_of_what_a_whole_model_was_counts(tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    for tuner, copies in (("full", 1), ("lora", 0)):
        without, with_it = (
            plan(
                run_of("stage=ppo", f"stage.kl_weight={weight}", f"tuner.kind={tuner}", "model.precision=fp32"),
                shapes,
                "cuda",
            )
            for weight in (0, 0.1)
        )
        assert with_it.weights - without.weights == copies * 4 * with_it.parameters


def test_what_glibc_holds_of_a_growing_cache(tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    words = [*GROUP, "stage.minibatch=2", "stage.drawing.max_new_tokens=100", "data.cutoff=24"]
    few, many = (plan(run_of(*words, f"training.batch_size={rows}"), shapes, "cpu") for rows in (16, 256))
    cache = 4 * cached(shapes)[0] * 123
    learning = plan(run_of(*words), shapes, "cpu").heap - ROWS * 16 * cache
    assert few.heap == 16 * 16 * cache + learning  # as much again
    assert many.heap == learning  # blocks that are given back at once


@pytest.mark.parametrize("stage", [[*GROUP, "stage.group=2"], ["stage.kind=ppo"]])
def test_fewer_answers_at_once_make_a_run_fit(stage: list[str], tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    run = run_of(*stage, "training.batch_size=256", "stage.drawing.max_new_tokens=8")
    for least, changed in (
        (["stage.minibatch=16"], {"stage.minibatch"}),
        (["stage.minibatch=1", "training.batch_size=128"], {"stage.minibatch", "training.batch_size"}),
    ):
        free = int(plan(config.run(run.model_dump(), config.override(least)), shapes, "cuda").peak / TIGHT) + 1
        found = foresee(run, shapes, 0, Room("cuda", free, free))
        assert found.verdict == "too_large" and {*found.fixes[0].patch} == changed
        for fix in found.fixes:
            mended = config.run(run.model_dump(), config.nest(fix.patch))
            assert plan(mended, shapes, "cuda").peak == fix.plan.peak <= TIGHT * free
