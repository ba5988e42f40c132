"""Models that are odd in one place: those that can be used are, of the others it is said what is wrong, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import InputError
from core.models import eva
from core.models.inspect import inspect
from core.models.loading import load_tokenizer
from core.sections import Model
from tests.conftest import copy_of
from tests.core.helpers import train


def changed(file: Path, **changes: Any) -> None:
    told = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(told))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return copy_of(tiny_model, tmp_path / "odd")


def test_a_config_that_wants_tuples_is_trained(make_run: Callable[..., Path], folder: Path) -> None:
    changed(folder / "config.json", return_dict=False)
    assert train(make_run("tuples", f"model.path={folder}", "training.max_steps=1"))["loss"] > 0


@pytest.mark.parametrize(("name", "value"), [
    ("attention_dropout", 2), ("attention_dropout", -1), ("resid_pdrop", float("nan")), ("quantization_config", 5),
])  # fmt: skip
def test_values_that_can_not_be_are_refused_cold(folder: Path, name: str, value: object) -> None:
    changed(folder / "config.json", **{name: value})
    with pytest.raises(InputError) as caught:
        inspect(folder)
    assert (caught.value.code, caught.value.place) == ("model.bad_value", "model.path")
    assert caught.value.params == {"folder": str(folder), "name": name, "given": str(value)}


def test_templates_of_which_none_is_the_usual_one(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    named = [{"name": "rag", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}]
    changed(folder / "tokenizer_config.json", chat_template=named)
    with pytest.raises(InputError) as caught:
        load_tokenizer(Model(path=str(folder)), folder)
    assert (caught.value.code, caught.value.place) == ("model.template_names", "data.template")
    assert caught.value.params == {"names": "rag, tool_use"}
    assert load_tokenizer(Model(path=str(folder)), folder, template="chatml")


def test_a_tokenizer_that_fails_at_what_it_does_not_know(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    with pytest.raises(InputError) as caught:
        load_tokenizer(Model(path=str(folder)), folder)
    assert (caught.value.code, caught.value.place) == ("model.bad_tokenizer", "model.path")
    assert "UNK" in caught.value.params["what"]


def test_dora_over_a_row_of_zeros_is_refused(make_run: Callable[..., Path], folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    weights[f"{name}.weight"][3] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        train(make_run("zeros", f"model.path={folder}", "tuner.dora=true"))
    assert (caught.value.code, caught.value.place) == ("lora.dora_zero", "tuner.lora.dora")
    assert caught.value.params == {"module": name}


class Seeing(torch.nn.Module):
    """A model whose eyes are closed for texts."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.head(torch.nn.functional.one_hot(input_ids, 8).float())


@pytest.mark.parametrize(("targets", "rows", "code"), [
    (["head"], [{"input_ids": [1, 2, 3]}], ""),
    (["head"], [{"input_ids": [1, 2, 3], "media": "{}"}], "lora.eva_files"),
    (["head", "vision_tower"], [{"input_ids": [1, 2, 3]}], "lora.eva_unseen"),
])  # fmt: skip
def test_eva_looks_at_texts_alone(targets: list[str], rows: list[dict[str, Any]], code: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=targets), Seeing())
    if not code:
        eva.begin(model, rows, "default")
        return
    with pytest.raises(InputError) as caught:
        eva.begin(model, rows, "default")
    assert (caught.value.code, caught.value.place) == (code, "tuner.lora.eva")
