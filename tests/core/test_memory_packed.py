"""The memory planner where weights are held in few bits: of eyes and ears, of state-space models, of what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.models.bits import whole
from core.models.loading import load_model
from core.models.memory import plan
from core.sections import Hardware, Model
from tests.core.seeing import make_llava
from tests.core.test_memory import model_of, run_of, shapes_of
from tests.core.tiny import AUTO, tiny_model


def held(model: Any) -> int:
    """Return the bytes of all weights, tied ones once, with what packed ones are unpacked by."""
    weights = {weight.data_ptr(): weight.nbytes for weight in model.parameters()}
    total = sum(weights.values())
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            total += state.absmax.nbytes + state.state2.absmax.nbytes
        elif type(module).__name__ == "Linear8bitLt":
            total += (module.weight.SCB if module.state.SCB is None else module.state.SCB).nbytes  # used before or not
    return total


@pytest.mark.parametrize("quantizer", ["bnb_4bit", "bnb_8bit"])
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "cohere2_vision", "lfm2_vl", "qwen2_audio", "mamba", "mamba2",
                                  "zamba", "zamba2", "opt"])  # fmt: skip
def test_bytes_of_every_part_of_a_packed_model(kind: str, quantizer: str, tmp_path: Path) -> None:
    run = run_of(f"model.quantizer.kind={quantizer}")
    planned = plan(run, shapes_of(tiny_model(kind), tmp_path), "cpu")
    settings = run.model.quantizer.loading(torch.float32, torch.device("cpu"))
    settings.llm_int8_skip_modules = whole(kind)
    auto = next(auto for auto, names in AUTO if kind in names)
    loaded = auto.from_pretrained(tmp_path, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32)
    assert planned.weights == pytest.approx(held(loaded), rel=0.02)


@pytest.mark.parametrize("quantizer", ["bnb_4bit", "bnb_8bit"])
def test_files_that_were_packed_from_are_let_go(quantizer: str, tmp_path: Path) -> None:
    settings = Model.model_validate({"path": str(make_llava(tmp_path / "llava")), "quantizer": {"kind": quantizer}})
    loaded = load_model(settings, tmp_path, Hardware(device="cpu"), training=True)
    assert held(loaded) and str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_glibc_holds_no_more_above_packed_weights_for_what_a_tuner_keeps(tmp_path: Path) -> None:
    shapes, few = shapes_of(model_of("llama"), tmp_path), "model.quantizer.kind=bnb_4bit"
    plain, packed = ([plan(run_of(f"tuner.dora={dora}", *words), shapes, "cpu") for dora in ("false", "true")]
                     for words in ([], [few]))  # fmt: skip
    assert packed[1].activations > 1.5 * packed[0].activations
    assert packed[1].heap == packed[0].heap
    assert plain[1].heap > 1.5 * plain[0].heap
