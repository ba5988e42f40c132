"""The value head: what it reads, where gradients go, and that nothing but safetensors is opened."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import InputError
from core.models import value_head
from core.models.value_head import ValueHead, reading, width
from core.tuners.lora import Lora
from tests.core import tiny


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "cohere", "qwen3_moe", "phi"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_values_are_a_line_over_the_last_hidden_states(model_type: str, wrapped: bool, tmp_path: Path) -> None:
    model: Any = tiny.tiny_model(model_type).eval()
    if wrapped:
        model = Lora(rank=2, targets=["all-linear", model_head(model)]).attach(model, tmp_path).eval()
    batch = {name: tensor for name, tensor in tiny.tiny_batch().items() if name != "labels"}
    head = ValueHead(width(model))
    with torch.no_grad():
        plain = model(**batch, output_hidden_states=True)
        wanted_B_T = (plain.hidden_states[-1] @ head.weight.T + head.bias)[..., 0]
        with reading(model, head):
            given = model(**batch)
    alone_B_T, values_B_T, logits_B_T_V = values(model, head, batch), given["value"], given["logits"]
    assert values_B_T.shape == batch["input_ids"].shape and values_B_T.dtype == torch.float32
    assert torch.allclose(values_B_T, wanted_B_T, atol=1e-5) and torch.equal(values_B_T, alone_B_T)
    assert torch.equal(logits_B_T_V, plain.logits)
    assert torch.equal(model(**batch).logits, plain.logits)  # no hook is left


def values(model: Any, head: ValueHead, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with reading(model, head, alone=True):
        return model(**batch)["value"]


def model_head(model: Any) -> str:
    return next(name for name, module in model.named_modules() if module is model.get_output_embeddings())


def test_values_begin_near_zero_and_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    head = ValueHead(4096)
    assert head.weight.std().item() == pytest.approx(4097**-0.5, rel=0.05) and not head.bias.any()
    states = torch.randn(2, 3, 4096)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(states.bfloat16())
    assert found.dtype == torch.float32 and torch.equal(found, head(states.bfloat16().float()))


def test_gradients_go_where_they_are_wanted(tmp_path: Path) -> None:
    batch = {name: tensor for name, tensor in tiny.tiny_batch().items() if name != "labels"}
    model: Any = tiny.tiny_model("llama")
    head = ValueHead(width(model))
    model.requires_grad_(False)
    values(model, head, batch).sum().backward()
    assert head.weight.grad is not None and all(p.grad is None for p in model.parameters())

    tuned: Any = Lora(rank=2).attach(model, tmp_path)
    head.requires_grad_(False).zero_grad()
    values(tuned, head, batch).sum().backward()
    assert head.weight.grad is None
    assert {name for name, p in tuned.named_parameters() if p.grad is not None} == {
        name for name, p in tuned.named_parameters() if "lora_" in name
    }
    with tuned.disable_adapter(), torch.no_grad():  # as the reference of one shared base is read
        assert not values(tuned, head, batch).requires_grad


def test_what_is_saved_is_loaded_as_it_was(tmp_path: Path) -> None:
    model = tiny.tiny_model("llama")
    head = ValueHead(64)
    value_head.save(head, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["value_head.safetensors"]
    again = value_head.load(model, tmp_path)
    assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)
    half = {name: tensor.half() for name, tensor in load_file(tmp_path / "value_head.safetensors").items()}
    save_file(half, tmp_path / "value_head.safetensors")
    assert value_head.load(model, tmp_path).weight.dtype == torch.float32


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/tuneboard-value-head-was-run"),)


@pytest.mark.parametrize(("tensors", "code"), [
    ({"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}, "value_head.unfit"),
    ({"weight": torch.zeros(1, 64)}, "value_head.unfit"),
    ({"weight": torch.zeros(1, 64), "bias": torch.zeros(1), "more": torch.zeros(1)}, "value_head.unfit"),
    ({"weight": torch.zeros(1, 64, dtype=torch.int32), "bias": torch.zeros(1)}, "value_head.unfit"),
    ({"weight": torch.full((1, 64), torch.nan), "bias": torch.zeros(1)}, "value_head.not_finite"),
    (None, "value_head.missing"),
    ("value_head.bin", "value_head.unsafe"),
    ("value_head.pt", "value_head.unsafe"),
])  # fmt: skip
def test_refused(tmp_path: Path, tensors: Any, code: str) -> None:
    if isinstance(tensors, str):
        (tmp_path / tensors).write_bytes(pickle.dumps(Bomb()))
    elif tensors:
        save_file(tensors, tmp_path / "value_head.safetensors")
    with pytest.raises(InputError) as caught:
        value_head.load(tiny.tiny_model("llama"), tmp_path, "model.path")
    assert (caught.value.code, caught.value.place) == (code, "model.path")
    assert not Path("/tmp/tuneboard-value-head-was-run").exists()


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    value_head.save(ValueHead(64), tmp_path)
    file = tmp_path / "value_head.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError) as caught:
        value_head.load(tiny.tiny_model("llama"), tmp_path)
    assert caught.value.code == "model.bad_weights"
