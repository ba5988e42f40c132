"""The registry of models: its rows, and one full and one LoRA step of a tiny model of every type in it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from core import config, templates
from core.errors import InputError
from core.forecast import forecast
from core.models import ahead
from core.models.inspect import inspect
from core.models.linear import _takers, linear
from core.models.loading import load_model
from core.models.registry import Entry, entries, find, of_type, page
from core.models.shapes import taken_for_experts
from core.models.targets import alike, check_names, check_targets
from core.sections import Hardware, Model
from core.tuners.lora import Lora
from core.tuners.oft import Oft
from tests.conftest import ROOT
from tests.core import tiny
from tests.core.test_memory import shapes_of

TYPES = sorted({entry.type for entry in entries() if entry.type})
CPU = Hardware(device="cpu")
CANNOT: dict[str, tuple[type[Exception], str]] = {
    # the vision tower comes from the timm package; EXTRA walks the rest of the model
    "gemma3n": (ImportError, "timm"),
}
"""Types of which no tiny model can be built here, and what is raised instead."""
EXTRA = ("gemma3n_text", "ministral3", "mistral4")
"""Types of the text part alone: of a type in CANNOT, or of models whose own type takes any text part."""
AHEAD = ("paligemma",)
"""Types that can answer, but not be taught here: nobody tells them where an answer begins."""
TOWERS = re.compile(r"vision|visual|image|audio|speech|lm_head|router|(^|\.)(gate|out_proj|x_proj|dt_proj)$")
"""What all-linear leaves alone, unless it is a part of attention."""
OF_ATTENTION = re.compile(r"(attn|attention|mixer|conv|delta)[^.]*\.(out_proj|gate)$")


def test_counts_and_order():
    every = entries()
    assert len(every) >= 130 and len({entry.family for entry in every}) >= 35
    assert len({entry.id.casefold() for entry in every}) == len(every)
    assert list(every) == sorted(every, key=lambda e: (e.family.casefold(), e.parameters or 1e9, e.id.casefold()))
    assert entries() is every


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.id)
def test_row(entry: Entry):
    assert re.fullmatch(r"[\w-]+/[\w.-]+", entry.id) and entry.family == entry.family.strip() != ""
    assert entry.type in CONFIG_MAPPING_NAMES or (not entry.type and "code of its own only" in entry.note)
    assert entry.modality[0] == "text" and set(entry.modality) <= {"text", "image", "video", "audio"}
    assert len(set(entry.modality)) == len(entry.modality)
    assert entry.template in ("", *templates.names()[1:])
    assert entry.parameters is None or 0.05 <= entry.parameters <= 2000
    assert entry.active is None or 0.3 <= entry.active < (entry.parameters or 100) <= 2000
    assert entry.context is None or 1024 <= entry.context <= 10_485_760
    assert isinstance(config.resolve(config.override(entry.settings)), config.Run)
    if entry.type in CANNOT:
        assert entry.note


def test_sizes_agree_with_names():
    """7B in a name of a text model tells the size, A3B the active part; both are rounded, often boldly."""
    wrong = []
    for entry in entries():
        name = entry.id.partition("/")[2]
        sizes = re.findall(r"(?<![\w.])(\d+(?:[._]\d+)?)[Bb](?![a-z0-9])", name)
        if sizes and entry.parameters and entry.modality == ("text",):
            told = max(float(size.replace("_", ".")) for size in sizes)
            if not told / 1.5 <= entry.parameters <= told * 1.5:
                wrong.append(entry.id)
        active = re.search(r"-A(\d+(?:\.\d+)?)B", name)
        if active and entry.active and not 0.6 <= entry.active / float(active[1]) <= 1.6:
            wrong.append(entry.id)
    assert wrong == []


def test_find():
    assert find("qwen3 8b")[0].id.startswith("Qwen/")
    assert "google/gemma-3-270m-it" in {entry.id for entry in find("GEMMA 3")}
    sizes = [entry.parameters or 1e9 for entry in find("llama")]
    assert sizes == sorted(sizes) and len(sizes) > 10
    assert find("audio") and all(
        "audio" in (*entry.modality, entry.id.casefold()) for entry in find("text+image+video+audio")
    )
    assert find("no such model") == [] and len(find("")) == len(entries())


def test_the_page_of_the_docs_is_fresh():
    written = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert written == page(), "run python -m core.models.registry"


def test_of_type():
    assert {entry.type for entry in of_type("qwen3_moe")} == {"qwen3_moe"}
    assert of_type("") == [] and of_type("nonsense") == []


def check_cold(model: Any, folder: Path) -> None:
    """See that nothing that can be attached is refused when the files are looked at."""
    model_type = model.config.model_type
    shapes, layers = shapes_of(model, folder), [model.get_submodule(name) for name in linear(model)]
    listed = (torch.nn.ModuleList, torch.nn.ModuleDict)
    having = [name for name, module in model.named_modules()
              if next(module.parameters(), None) is not None and not isinstance(module, listed)]  # fmt: skip
    check_names(shapes, [name for name in having if name], "", tied=True)
    for name, parts in _takers(model, tables=True).items():
        last = name.rpartition(".")[2]
        if not taken_for_experts(model_type, name):
            check_targets(shapes, [name, *([] if parts - {last} else [last, f".*{last}$"])], "", lora=True)
    Lora(rank=min(min(layer.weight.shape) for layer in layers), pissa=True).check(shapes)
    if any(isinstance(layer, Conv1D) for layer in layers):
        return  # OFT can't turn them (test_trainable.py)
    widths = [layer.weight.shape[isinstance(layer, torch.nn.Linear)] for layer in layers]
    Oft(block=math.gcd(*widths)).check(shapes)


@pytest.mark.parametrize("model_type", [name for name in (*TYPES, *EXTRA) if name not in (*CANNOT, *AHEAD)])
def test_type_learns(model_type: str, tmp_path: Path):
    model, batch = loaded(model_type, tmp_path / "model"), tiny.tiny_batch()
    assert sum(parameter.numel() for parameter in model.parameters()) < 10_000_000
    if alike(model_type):
        check_cold(model, tmp_path / "files")
    step(model, batch)
    attached: Any = Lora(rank=4).attach(model, tmp_path)
    layers = [name.removeprefix("base_model.model.") for name, module in attached.named_modules()
              if isinstance(module, LoraLayer)]  # fmt: skip
    assert layers and not [name for name in layers if TOWERS.search(name) and not OF_ATTENTION.search(name)]
    assert all("lora_" in name for name, parameter in attached.named_parameters() if parameter.requires_grad)
    step(attached, batch)


def tried(model_type: str, **told: Any) -> tuple[Any, list[bool]]:
    """Return (a model, whether it is refused by its config.json, whether it is by a gradient)."""
    config = tiny.tiny_config(model_type)
    config.update(told)
    model: Any = next(auto for auto, names in tiny.AUTO if model_type in names).from_config(config)
    refused = []
    for check, given in ((ahead.check, config.to_dict()), (ahead.checked, model)):
        try:
            check(given)
        except InputError as error:
            assert (error.code, error.place) == ("model.sees_ahead", "model.path")
            refused.append(True)
        else:
            refused.append(False)
    return model, refused


@pytest.mark.parametrize("model_type", sorted({*ahead.ENCODERS, *ahead.ALWAYS, "xlm", "xlnet"} - {"xmod"}))
def test_who_would_see_the_answer_is_refused(model_type: str, tmp_path: Path):
    model, refused = tried(model_type)
    assert refused == [True, True]
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="from both ends"):
        load_as_run(tmp_path)


def test_who_is_said_to_look_ahead_is_refused_by_what_it_does():
    assert tried("llama", is_causal=False)[1] == [False, True]


@pytest.mark.parametrize(("model_type", "told"), [
    ("roberta", {"is_decoder": True}), ("xlnet", {"attn_type": "uni"}), ("xlm", {"causal": True}), ("ctrl", {}),
    ("git", {}), ("bart", {}), ("gemma3", {}), ("rwkv", {}), ("mixtral", {}),
])  # fmt: skip
def test_who_looks_back_alone_is_not(model_type: str, told: dict[str, Any]):
    assert tried(model_type, **told)[1] == [False, False]


def test_of_a_model_that_speaks_the_part_that_writes_learns_and_is_kept(tmp_path: Path):
    tiny.tiny_model("qwen2_5_omni").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    speaks = {"talker.model.layers.0.self_attn.q_proj.weight": torch.zeros(64, 64)}
    save_file(load_file(file) | speaks, file, metadata={"format": "pt"})
    model = load_as_run(tmp_path / "model")
    model.save_pretrained(tmp_path / "kept")
    again: Any = load_as_run(tmp_path / "kept")
    batch = tiny.tiny_batch()
    assert torch.equal(again(**batch).logits, cast(Any, model)(**batch).logits)
    run = config.run(config.override([f"model.path={tmp_path / 'model'}", "tuner=full", "data.train=[rows]"]))
    found = forecast(run, tmp_path)
    assert found and found.plan.trainable == model.num_parameters()
    assert inspect(tmp_path / "model").context == model.config.get_text_config().max_position_embeddings


def test_of_a_model_that_speaks_what_is_packed_is_read_or_refused(tmp_path: Path):
    model, kind = tiny.tiny_model("qwen2_5_omni"), BitsAndBytesConfig(load_in_4bit=True)
    model.save_pretrained(tmp_path / "plain")
    load: Any = PreTrainedModel.from_pretrained.__func__  # that of its own class wants voices
    packed = load(type(model), tmp_path / "plain", quantization_config=kind, dtype=torch.float32)
    packed.save_pretrained(tmp_path / "packed")
    writes = load_as_run(tmp_path / "packed")
    found, wanted = dict(writes.named_parameters()), dict(packed.thinker.named_parameters())
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    assert sum(type(module).__name__ == "Linear4bit" for module in writes.modules()) > 20
    told = tmp_path / "packed" / "config.json"
    settings = json.loads(told.read_text())
    told.write_text(json.dumps(settings | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError) as caught:
        load_as_run(tmp_path / "packed")
    assert (caught.value.code, caught.value.place) == ("packed.speaks", "model.path")


@pytest.mark.parametrize("model_type", CANNOT)
def test_exception_still_holds(model_type: str):
    error, says = CANNOT[model_type]
    with pytest.raises(error, match=says):
        tiny.tiny_model(model_type)


def loaded(model_type: str, folder: Path) -> PreTrainedModel:
    """Return the tiny model of a type as a run loads it."""
    tiny.tiny_model(model_type).save_pretrained(folder)
    return load_as_run(folder)


def load_as_run(folder: Path) -> PreTrainedModel:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return load_model(Model(path=str(folder)), folder, CPU, training=True, check=Lora(rank=4).check_made)


def step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Take one step on text and see that it moves what it should."""
    model.train()
    model.zero_grad()
    loss = model(**batch).loss
    assert torch.isfinite(loss)
    loss.backward()
    learning = [p for p in model.parameters() if p.requires_grad and p.grad is not None and p.grad.any()]
    assert learning and all(torch.isfinite(p.grad).all() for p in learning)
    before = [p.detach().clone() for p in learning]
    torch.optim.AdamW(learning, lr=1e-3).step()
    assert any(not torch.equal(old, new) for old, new in zip(before, learning, strict=True))
