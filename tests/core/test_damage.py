"""A model with a weight that is no number is named as such, with the weight, wherever it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import config
from core.errors import InputError
from core.evaluation.run import evaluate
from core.export.merge import export
from core.generation import Generation
from core.models import damage
from core.models.answering import draw, sampling
from core.models.lineup import Lineup
from core.sections import Hardware, Model
from core.serving.server import _failure
from tests.conftest import copy_of
from tests.core.helpers import of_type, train
from tests.core.models_fixtures import context

CPU = Hardware(device="cpu")
BAD = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """`broken("name", nan)`: a copy of the tiny model in two files, one number in one weight replaced."""

    def make(name: str, value: float, place: int = -3) -> Path:
        folder = copy_of(tiny_model, tmp_path / "broken")
        weights = load_file(folder / "model.safetensors")
        weights[name].view(-1)[place] = value
        (folder / "model.safetensors").unlink()
        halves = {"a.safetensors": sorted(weights)[::2], "b.safetensors": sorted(weights)[1::2]}
        for file, names in halves.items():
            save_file({key: weights[key] for key in names}, folder / file, metadata={"format": "pt"})
        told = {"metadata": {}, "weight_map": {key: file for file, names in halves.items() for key in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(told))
        return folder

    return make


def refused(caught: Any, folder: Path, name: str = BAD) -> None:
    error = caught.value
    assert (error.code, error.place) == ("model.not_finite", "model.path")
    assert error.params == {"folder": str(folder), "names": name}


WAYS = {
    "lora": (), "full": ("tuner.kind=full",), "expand": ("tuner.kind=expand", "tuner.blocks=1"),
    "pissa": ("tuner.pissa=true",), "eva": ("tuner.eva=true",),
    "loftq": ("tuner.loftq=true", "model.quantizer=bnb_4bit"), "four": ("model.quantizer=bnb_4bit",),
    "eager": ("model.attention=eager", "tuner.kind=full"), "s2": ("training.s2=0.25", "data.packing=never"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_training(make_run: Callable[..., Path], broken: Callable[..., Path], way: str) -> None:
    folder = broken(BAD, float("nan"))
    run = make_run(way, f"model.path={folder}", *WAYS[way])
    with pytest.raises(InputError) as caught:
        train(run)
    refused(caught, folder)
    assert len(of_type(run, "step")) == (3 if way == "eager" else 0)  # others try the model before they begin


@pytest.mark.parametrize(("name", "value"), [
    (BAD, float("inf")), ("lm_head.weight", float("nan")), ("lm_head.weight", float("inf")),
])  # fmt: skip
def test_answers(tiny_model: Path, broken: Callable[..., Path], name: str, value: float) -> None:
    folder = broken(name, value)
    lineup = Lineup(Model(path=str(folder), precision="fp32"), [str(tiny_model)], folder.parent, CPU)
    with lineup.use(str(tiny_model)) as whole:
        settings = sampling(Generation(max_new_tokens=3), whole, lineup.tokenizer("base"))
        assert draw(whole, [[5, 6, 7]], settings).shape[1] <= 3
    for temperature in (0, 1):
        with lineup.use("base") as model, pytest.raises(InputError) as caught:
            draw(model, [[5, 6, 7]], sampling(Generation(temperature=temperature), model, lineup.tokenizer("base")))
        refused(caught, folder, name)
        assert _failure(caught.value) is caught.value  # who chats is told


def test_evaluation_and_export(tiny_data: Path, tiny_model: Path, broken: Callable[..., Path]) -> None:
    folder = broken(BAD, float("nan"))
    asked = {"folder": str(tiny_data), "set": "orders", "max_rows": 2}
    shared = {"model": {"path": str(folder)}, "hardware": {"device": "cpu"}}
    exam: Any = config.resolve(shared, {"evaluated": asked, "generation": {"max_new_tokens": 4}}, job="evaluation")
    whole: Any = config.resolve(shared, {"source": str(folder)}, job="export")
    for name, do in (("exam", lambda at: evaluate(exam, at)), ("export", lambda at: export(whole, at))):
        with context(folder.parent, name) as at, pytest.raises(InputError) as caught:
            do(at)
        refused(caught, folder)


def test_a_token_that_only_references_have(tiny_data: Path, tiny_model: Path, broken: Callable[..., Path]) -> None:
    """Its row of the embedding is not used before the references are measured."""
    row = AutoTokenizer.from_pretrained(tiny_model)("}").input_ids[0]
    name = "model.embed_tokens.weight"
    folder = broken(name, float("nan"), row * 64)
    asked = {"folder": str(tiny_data), "set": "orders", "max_rows": 2}
    settings = {"model": {"path": str(folder)}, "evaluated": asked, "hardware": {"device": "cpu"}}
    job: Any = config.resolve(settings, {"generation": {"max_new_tokens": 1}}, job="evaluation")
    with context(folder.parent, "exam") as at, pytest.raises(InputError) as caught:
        evaluate(job, at)
    refused(caught, folder, name)
    assert of_type(at.folder, "sample")


def test_a_healthy_model_is_not_blamed(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for logit in ("nan", "inf", "-inf"):
        damage.check(model, torch.tensor([float(logit), 1.0]))
