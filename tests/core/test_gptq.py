"""A GPTQ model made and tuned on a CPU; gptqmodel lies beside the environment, where no other run imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.models.linear import linear
from core.models.loading import load_model
from core.sections import Hardware, Model
from core.tuners.lora import Lora
from tests.conftest import ROOT, launch_worker
from tests.core.helpers import of_type

BESIDE = Path(os.environ.get("TUNEBOARD_GPTQ") or Path(sys.prefix) / "gptq")
"""Where `make dev` puts gptqmodel and what it needs."""
UNBUILT = {"CXX": "false"}
"""Without a compiler gptqmodel computes with torch: building its own kernels takes it minutes."""
IDS_B_T = torch.arange(5, 29).reshape(2, 12)
MAKE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig
source, target = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(source)
texts = ["red green blue pen book cup order for Anna Paul Mia please two three four " * 4] * 8
how = GPTQConfig(bits=4, group_size=32, dataset=texts, tokenizer=tokenizer, batch_size=1)
settings = {"quantization_config": how, "device_map": {"": "cpu"}, "dtype": torch.float32}
model = AutoModelForCausalLM.from_pretrained(source, **settings)
model.save_pretrained(target)
tokenizer.save_pretrained(target)
"""


@pytest.fixture(scope="module")
def packed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in 4 bits by GPTQ."""
    if not (BESIDE / "gptqmodel").is_dir():
        pytest.skip("make dev has not put gptqmodel beside the environment")
    folder = tmp_path_factory.mktemp("gptq") / "packed"
    beside(["-c", MAKE, str(tiny_model), str(folder)])
    return folder


def beside(arguments: list[str]) -> None:
    environment = os.environ | UNBUILT | {"PYTHONPATH": f"{BESIDE}:{ROOT}"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_run_teaches_above_a_gptq_model(
    make_run: Callable[..., Path], packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (UNBUILT | {"PYTHONPATH": str(BESIDE)}).items():
        monkeypatch.setenv(name, value)
    losses = {}
    for every in (1, 10):  # answers between the steps change nothing
        folder = make_run(f"every{every}", f"model.path={packed}", f"training.eval_every={every}")
        assert launch_worker(folder).wait(300) == 0, (folder / "console.log").read_text()
        losses[every] = [event["loss"] for event in of_type(folder, "step")]
    assert losses[1] == losses[10] and losses[1][-1] < 0.95 * losses[1][0]


def test_gradients_are_those_of_the_unpacked_weights(packed: Path) -> None:
    beside([__file__, str(packed)])


def gradients(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Return the gradients of an adapter that adds something, after an answer without any."""
    tuned: Any = Lora(rank=4, alpha=8).attach(model, folder)
    torch.manual_seed(0)
    for name, parameter in sorted(tuned.named_parameters()):  # gptqmodel puts layers into another order
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        tuned.eval()(input_ids=IDS_B_T)
    tuned.train()(input_ids=IDS_B_T, labels=IDS_B_T).loss.backward()
    return {name: p.grad for name, p in tuned.named_parameters() if p.requires_grad}


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that the files of a GPTQ model stand for: scale · (number - zero), eight numbers a word."""
    stored, found = load_file(folder / "model.safetensors"), {}
    how = json.loads((folder / "config.json").read_text())["quantization_config"]
    below = 0 if how["checkpoint_format"] == "gptq_v2" else 1  # the older files hold zeros less one
    shifts = torch.arange(0, 32, 4)
    for name, words in stored.items():
        layer, _, kind = name.rpartition(".")
        if kind == "qweight":
            numbers_I_O = (words[:, None, :] >> shifts[None, :, None] & 15).flatten(0, 1)
            zeros_G_O = (stored[f"{layer}.qzeros"][:, :, None] >> shifts & 15).flatten(1, 2) + below
            group_I = stored[f"{layer}.g_idx"].long()
            scale_I_O = stored[f"{layer}.scales"].float()[group_I]
            found[f"{layer}.weight"] = (scale_I_O * (numbers_I_O - zeros_G_O[group_I])).T.contiguous()
        elif kind == "weight":
            found[name] = words
    return found


def compare(folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = load_model(Model(path=str(folder)), folder, Hardware(device="cpu"), training=True)
    assert len(linear(model)) == 14
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    whole: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    whole.load_state_dict(unpacked(folder))
    found, wanted = gradients(model, folder), gradients(whole, folder)
    assert found.keys() == wanted.keys() and len(found) == 28
    for name, gradient in wanted.items():
        assert gradient.norm() > 0 and (found[name] - gradient).norm() <= 0.01 * gradient.norm(), name


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
