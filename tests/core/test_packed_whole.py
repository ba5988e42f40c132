"""What learns above packed layers: what can't is refused before the start and, where files don't tell, by the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import config
from core.errors import InputError
from core.models.loading import load_model
from core.preflight import check_model
from core.sections import Hardware, Model
from tests.conftest import copy_of
from tests.core.helpers import train

WHOLE = ("lora.packed_whole", "tuner.lora.extra")
DORA = ("quantizer.dora", "tuner.lora.dora")


@pytest.fixture(params=["bnb_4bit", "bnb_8bit"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def packed(tiny_model: Path, tmp_path: Path, kind: str) -> Path:
    """The tiny model as it is saved in so many bits."""
    folder = copy_of(tiny_model, tmp_path / "packed")
    settings: Any = {"path": str(tiny_model), "quantizer": {"kind": kind}}
    load_model(Model(**settings), folder, Hardware(device="cpu")).save_pretrained(folder)
    return folder


def refused(folder: Path, expected: tuple[str, str]) -> None:
    """Ask both the cold look and the run."""
    job: Any = config.load((folder / "run.yaml").read_text(), "run.yaml")
    for ask in (lambda: check_model(job, folder.parents[1]), lambda: train(folder)):
        with pytest.raises(InputError) as caught:
            ask()
        assert (caught.value.code, caught.value.place) == expected


@pytest.mark.parametrize("extra", ["q_proj", "mlp", "model.layers.0"])
def test_packed_layers_never_learn_whole(
    make_run: Callable[..., Path], packed: Path, tiny_model: Path, kind: str, extra: str
) -> None:
    for name, *model in (
        ("comes", f"model.path={packed}"),
        ("here", f"model.path={tiny_model}", f"model.quantizer={kind}"),
    ):
        refused(make_run(name, *model, f"tuner.extra=[{extra}]"), WHOLE)


def test_what_stays_as_it_is_may_learn_whole(make_run: Callable[..., Path], tiny_model: Path, kind: str) -> None:
    extra = "tuner.extra=[lm_head,embed_tokens,norm,input_layernorm]"
    folder = make_run("ends", f"model.path={tiny_model}", f"model.quantizer={kind}", extra, "training.max_steps=1")
    job: Any = config.load((folder / "run.yaml").read_text(), "run.yaml")
    assert check_model(job, folder.parents[1])
    assert train(folder)["loss"] > 0


@pytest.mark.parametrize("kind", ["bnb_8bit"], indirect=True)
def test_dora_is_never_trained_above_eight_bits(make_run: Callable[..., Path], packed: Path, tiny_model: Path) -> None:
    refused(make_run("comes", f"model.path={packed}", "tuner.dora=true"), DORA)
    first = make_run("first", f"model.path={tiny_model}", "tuner.dora=true", "training.max_steps=1")
    train(first)
    assert json.loads((first / "adapter" / "adapter_config.json").read_text())["use_dora"]
    on = ("tuner.start=[first]", "tuner.go_on=true")
    refused(make_run("on", f"model.path={tiny_model}", *on, "model.quantizer=bnb_8bit"), DORA)
