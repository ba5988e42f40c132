"""Every tuner with every quantizer and every optimizer: what goes together trains, what doesn't says why."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from core import config
from core.crossings import CROSSINGS
from core.errors import InputError
from core.recipes import recipes
from core.schema import variants
from tests.conftest import ROOT, new_run
from tests.core.helpers import digest, of_type, train

ADAPTERS = ("lora", "oft")
TUNERS = {
    "lora": ["tuner.kind=lora", "tuner.rank=4"], "oft": ["tuner.kind=oft", "tuner.block=16"], "full": ["tuner=full"],
    "freeze": ["tuner=freeze", "tuner.layers=1"], "expand": ["tuner=expand", "tuner.blocks=1"],
}  # fmt: skip
QUANTIZERS = ("none", "bnb_4bit", "bnb_8bit", "torchao", "hqq")
ALONE = ["training.clip=0"]
OPTIMIZERS = {
    "adamw": [], "adamw 8bit": ["optimizer.variant=8bit"], "adafactor": ["optimizer=adafactor"],
    "galore": ["optimizer=galore", "optimizer.rank=4", *ALONE],
    "galore layerwise": ["optimizer=galore", "optimizer.rank=4", "optimizer.layerwise=true", *ALONE],
    "apollo": ["optimizer=apollo", "optimizer.rank=4", *ALONE],
    "apollo layerwise": ["optimizer=apollo", "optimizer.rank=4", "optimizer.layerwise=true", *ALONE],
    "badam": ["optimizer=badam", "optimizer.switch_every=1"],
    "badam ratio": ["optimizer=badam", "optimizer.mode=ratio", "optimizer.switch_every=1", *ALONE],
    "muon": ["optimizer=muon"], "adam_mini": ["optimizer=adam_mini"], "lomo": ["optimizer=lomo", *ALONE],
    "schedule_free": ["optimizer=schedule_free", "training.schedule=constant"],
}  # fmt: skip
DEMO = ROOT / "assets" / "demo" / "model"
HERE = find_spec("schedulefree") is not None
"""Part of what is installed with Tuneboard."""
EVERYWHERE = ("adamw", "adamw 8bit", "adafactor", "schedule_free")
"""What moves adapters as well as weights of the model."""


def expected(tuner: str, quantizer: str, optimizer: str) -> tuple[str, str] | None:
    """Return (code, place) of what is wrong with three of them; None where they go together."""
    if quantizer != "none" and tuner not in ADAPTERS:
        return "quantizer.full", "tuner"
    if tuner in ADAPTERS and optimizer not in (*EVERYWHERE, "muon"):
        return "optimizer.adapters", "tuner"
    return ("optimizer.turns", "tuner") if (tuner, optimizer) == ("oft", "muon") else None


def words(tuner: str, quantizer: str, optimizer: str) -> list[str]:
    return [*TUNERS[tuner], f"model.quantizer={quantizer}", *OPTIMIZERS[optimizer]]


def refused(*settings: str) -> tuple[str, str] | None:
    try:
        config.run(config.override(settings))
    except InputError as error:
        (problem,) = error.problems
        return problem.code, problem.place
    return None


def test_the_matrix_knows_all_that_there_is() -> None:
    assert set(TUNERS) == set(variants("core.tuners")) and set(QUANTIZERS) == set(variants("core.quantizers"))
    assert {name.partition(" ")[0] for name in OPTIMIZERS} == set(variants("core.optimizers"))


def test_what_does_not_go_together_is_refused_before_anything_is_loaded() -> None:
    cases = [(tuner, quantizer, optimizer) for tuner in TUNERS for quantizer in QUANTIZERS for optimizer in OPTIMIZERS]
    assert {case: refused(*words(*case)) for case in cases} == {case: expected(*case) for case in cases}


APART = ("galore layerwise", "apollo layerwise", "badam", "badam ratio", "lomo")
"""What moves weights before the gradients of several processes are put together."""


def test_what_learns_alone_is_refused_to_several_processes_before_anything_is_loaded() -> None:
    for name, optimizer in OPTIMIZERS.items():
        for several in ([], ["launcher.processes=2"], ["launcher.processes=1", "launcher.nodes=2"]):
            given = ["tuner=full", "launcher=ddp", "launcher.endpoint=a:29500", *several, *optimizer]
            assert refused(*given) == (("optimizer.processes", "launcher") if name in APART else None), (name, several)
        assert refused("tuner=full", "launcher=ddp", "launcher.processes=1", *optimizer) is None, name


@pytest.mark.parametrize(("settings", "code", "place"), [
    (["optimizer=lomo", "training.clip=1"], "optimizer.clip", "training.clip"),
    (["optimizer=lomo", *ALONE, "training.accumulation=2"], "optimizer.accumulation", "training.accumulation"),
    (["optimizer=lomo", *ALONE, "model.precision=fp16"], "optimizer.fp16", "model.precision"),
    (["optimizer=galore", "optimizer.layerwise=true"], "optimizer.clip", "training.clip"),
    (["optimizer=galore", "optimizer.layerwise=true", *ALONE, "training.accumulation=2"], "optimizer.accumulation",
     "training.accumulation"),
    (["optimizer=apollo", "optimizer.layerwise=true", *ALONE, "model.precision=fp16"], "optimizer.fp16",
     "model.precision"),
    (["optimizer=badam", "optimizer.mode=ratio"], "optimizer.clip", "training.clip"),
    (["optimizer=badam", "optimizer.mode=ratio", *ALONE, "training.accumulation=2"], None, None),
    (["optimizer=badam", "training.accumulation=2", "model.precision=fp16"], None, None),
    (["optimizer=badam", "model.add_tokens=[new]"], "optimizer.outside", "optimizer.badam.ends"),
    (["optimizer=badam", "model.add_tokens=[new]", "optimizer.ends=true"], None, None),
    (["optimizer=badam", "stage=ppo"], "optimizer.outside", "optimizer.badam.ends"),
    (["optimizer=badam", "stage=rm"], "optimizer.outside", "optimizer.badam.ends"),
    (["optimizer=schedule_free"], "optimizer.schedule", "training.schedule"),
    (["optimizer=galore", "training.accumulation=2", "model.precision=fp16"], None, None),
    (["optimizer=muon", "tuner.kind=freeze", "optimizer.weight_decay=0.1", "model.add_tokens=[new]"],
     "vocabulary.decay", "optimizer"),
])  # fmt: skip
def test_settings_that_an_optimizer_can_not_live_with(settings: list[str], code: str | None, place: str | None) -> None:
    assert refused("tuner=full", *settings) == ((code, place) if code else None)


def test_every_wish_is_refused_somewhere() -> None:
    modes = ({}, {"layerwise": True}, {"mode": "ratio"})
    wishes = {want for cls in variants("core.optimizers").values() for mode in modes
              if mode.keys() <= cls.model_fields.keys() for want in cls(**mode).wants}  # fmt: skip
    assert wishes == set(CROSSINGS)


def two_steps(place: Path, model: Path, data: Path, settings: list[str]) -> Path:
    """Train two steps without evaluation; return the run folder."""
    base = ["training.max_steps=2", "training.batch_size=2", "data.max_rows=4", "data.eval_share=0", "saving.every=100"]
    folder = new_run(place, model, data, *base, *settings)
    train(folder)
    return folder


@pytest.mark.parametrize("quantizer", ["none", "bnb_4bit", "bnb_8bit"])
def test_what_goes_together_trains(quantizer: str, tiny_model: Path, tiny_data: Path, workspace: Path) -> None:
    allowed = [(tuner, name) for tuner in TUNERS for name in OPTIMIZERS if not expected(tuner, quantizer, name)]
    allowed = [
        case for case in allowed if case[0] not in ("freeze", "expand") or " " not in case[1]
    ]  # other ways: full
    if not HERE:
        allowed = [case for case in allowed if case[1] != "schedule_free"]
    ends: dict[tuple[str, str], str] = {}
    for number, (tuner, name) in enumerate(allowed):
        place = workspace / "runs" / f"{number}"
        folder = two_steps(place, tiny_model, tiny_data, words(tuner, quantizer, name))
        steps = of_type(folder, "step")
        assert [event["step"] for event in steps] == [1, 2], (tuner, name)
        assert all(math.isfinite(e["loss"]) and 0 < e["grad_norm"] < 1e4 for e in steps), (tuner, name)
        ends[tuner, name] = digest(folder / ("adapter" if tuner in ADAPTERS else "model"))
    for name in ("galore", "apollo") if quantizer == "none" else ():
        assert ends.pop(("full", f"{name} layerwise")) == ends["full", name]
    assert len(set(ends.values())) == len(ends)  # each moved the weights to another place


def from_recipe(place: Path, name: str, model: Path, *more: str) -> list[dict[str, Any]]:
    """Train two steps of a recipe on the demo data; return what was told of them."""
    ours = [f"model.path={model}", "data.max_rows=24", "data.cutoff=128", "data.eval_share=0", "training.max_steps=2",
            "training.batch_size=2", "hardware.device=cpu", "hardware.threads=1"]  # fmt: skip
    job = config.run(recipes()[name].layer, config.override([*ours, *more]))
    place.mkdir()
    (place / "run.yaml").write_text(config.dump(job), encoding="utf-8")
    train(place)
    return of_type(place, "step")


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_trains(name: str, tiny_model: Path, workspace: Path) -> None:
    if recipes()[name].layer.get("optimizer", {}).get("kind") == "schedule_free" and not HERE:
        pytest.skip("schedulefree is not installed")
    short = ["stage.drawing.max_new_tokens=8"] if name in ("ppo", "grpo") else []
    assert [event["step"] for event in from_recipe(workspace / "runs" / name, name, tiny_model, *short)] == [1, 2]


@pytest.mark.parametrize("name", ["simpo", "cpo"])
def test_recipes_for_comparisons_learn_on_the_demo_model(name: str, workspace: Path) -> None:
    """In a quarter of their steps what is held out shows it."""
    more = ["data.max_rows=100", "data.eval_share=0.2", "training.batch_size=4", "training.max_steps=12"]
    place = workspace / "runs" / name
    from_recipe(place, name, DEMO, *more, "training.eval_every=12", "watching.at_start=true")
    before, after = (event["metrics"]["rewards/margins"] for event in of_type(place, "eval"))
    assert after > before + 0.2


def test_the_recipe_for_answers_that_can_be_checked_rewards_some_of_the_demo_model(workspace: Path) -> None:
    more = ["data.max_rows=960", "training.batch_size=4", "training.max_steps=6"]
    steps = from_recipe(workspace / "runs" / "grpo", "grpo", DEMO, *more)
    assert any(event["metrics"]["rewards/mean"] and event["grad_norm"] for event in steps)


@pytest.mark.parametrize("name", ["dpo", "reward-model", "ppo"])
def test_every_kind_of_stage_moves_weights_in_every_way(name: str, tiny_model: Path, workspace: Path) -> None:
    """All gradients at once, those of a block, each by itself, the mean of the weights: with value heads, too."""
    ways = {"muon": [], "badam": ["tuner=full", "optimizer.ends=true"], "lomo": ["tuner=full"], "schedule_free": []}
    for optimizer, more in ways.items():
        if optimizer != "schedule_free" or HERE:
            given = ["training.accumulation=1", *OPTIMIZERS[optimizer], "optimizer.learning_rate=1e-4", *more]
            given += ["stage.drawing.max_new_tokens=8"] if name == "ppo" else []
            steps = from_recipe(workspace / "runs" / optimizer, name, tiny_model, *given)
            assert all(math.isfinite(e["loss"]) and e["grad_norm"] > 0 for e in steps) and len(steps) == 2, optimizer
