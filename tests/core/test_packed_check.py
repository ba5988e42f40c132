"""What bitsandbytes reads beside packed weights is looked at before it does: it reads past the end of what is short."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import InputError
from core.models.loading import load_model
from core.sections import Hardware, Model
from tests.conftest import copy_of

CPU = Hardware(device="cpu")
LAYER = "model.layers.0.self_attn.q_proj"
STATE = ".weight.quant_state.bitsandbytes__nf4"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def packed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`packed("bnb_4bit")`: the tiny model as it is saved in so many bits."""

    @cache
    def make(kind: str) -> Path:
        folder = copy_of(tiny_model, tmp_path_factory.mktemp("packed") / kind)
        load(tiny_model, kind).save_pretrained(folder)
        return folder

    return make


def load(folder: Path, kind: str = "none") -> Any:
    settings: Any = {"path": str(folder), "quantizer": {"kind": kind}}
    return load_model(Model(**settings), folder, CPU)


def gone(end: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(LAYER + end)


def short(end: str, count: int = 2) -> Callable[[Weights], object]:
    return lambda weights: weights.update({LAYER + end: weights[LAYER + end][:count].clone()})


def nan(end: str) -> Callable[[Weights], object]:
    return lambda weights: weights[LAYER + end].fill_(float("nan"))


def says(**changes: Any) -> Callable[[Weights], object]:
    def change(weights: Weights) -> None:
        told = json.loads(bytes(weights[LAYER + STATE].tolist())) | changes
        told = {key: value for key, value in told.items() if value is not None}
        weights[LAYER + STATE] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)

    return change


FOUR: dict[str, tuple[str, str, Callable[[Weights], object]]] = {
    "no absmax": ("model.weights_missing", ".weight.absmax", gone(".weight.absmax")),
    "no state": ("model.weights_missing", STATE, gone(STATE)),
    "no weight": ("model.weights_missing", ".weight", gone(".weight")),
    "short absmax": ("packed.broken", ".weight.absmax", short(".weight.absmax")),
    "short map": ("packed.broken", ".weight.quant_map", short(".weight.quant_map")),
    "short nested": ("packed.broken", ".weight.nested_quant_map", short(".weight.nested_quant_map")),
    "no nested": ("packed.broken", ".weight.nested_absmax", short(".weight.nested_absmax", 0)),
    "short weight": ("packed.broken", ".weight", short(".weight", 10)),
    "nan": ("model.not_finite", ".weight.quant_map", nan(".weight.quant_map")),
    "no json": ("packed.broken", STATE, lambda weights: weights[LAYER + STATE].fill_(255)),
    "empty": ("packed.broken", STATE, short(STATE, 0)),
    "type": ("packed.broken", STATE, says(quant_type="zz")),
    "other type": ("packed.broken", STATE, says(quant_type="fp4")),
    "load": ("packed.broken", STATE, says(dtype="load")),
    "os": ("packed.broken", STATE, says(nested_dtype="os")),
    "shape": ("packed.broken", STATE, says(shape=[7, 7])),
    "no shape": ("packed.broken", STATE, says(shape=None)),
    "blocks of none": ("packed.broken", STATE, says(blocksize=0)),
    "blocks of 3": ("packed.broken", STATE, says(blocksize=3)),
    "nested blocks": ("packed.broken", STATE, says(nested_blocksize=0)),
    "more": ("packed.broken", STATE, says(more=1)),
    "offset": ("model.not_finite", STATE, says(nested_offset=float("nan"))),
}  # fmt: skip
EIGHT: dict[str, tuple[str, str, Callable[[Weights], object]]] = {
    "no scales": ("model.weights_missing", ".SCB", gone(".SCB")),
    "short scales": ("packed.broken", ".SCB", short(".SCB")),
    "nan scales": ("model.not_finite", ".SCB", nan(".SCB")),
}


@pytest.mark.parametrize(
    ("kind", "name"), [*(("bnb_4bit", name) for name in FOUR), *(("bnb_8bit", name) for name in EIGHT)]
)
def test_what_is_damaged_is_named(packed: Callable[[str], Path], tmp_path: Path, kind: str, name: str) -> None:
    code, end, change = (FOUR | EIGHT)[name]
    folder = copy_of(packed(kind), tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        load(folder)
    assert (caught.value.code, caught.value.place) == (code, "model.path")
    assert caught.value.params == {"folder": str(folder), "names": LAYER + end}


@pytest.mark.parametrize("kind", ["bnb_4bit", "bnb_8bit"])
def test_what_is_healthy_is_loaded(packed: Callable[[str], Path], kind: str) -> None:
    assert torch.isfinite(load(packed(kind))(torch.arange(5, 12)[None]).logits).all()


def test_a_config_that_names_no_number_format_is_refused(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of(packed("bnb_4bit"), tmp_path / "odd")
    told = json.loads((folder / "config.json").read_text())
    told["quantization_config"]["bnb_4bit_compute_dtype"] = "load"
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(InputError) as caught:
        load(folder)
    assert (caught.value.code, caught.value.place) == ("model.unusable", "model.path")
