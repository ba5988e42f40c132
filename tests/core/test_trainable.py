"""What learns, by name, under each tuner and for families that are built in different ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import InputError
from core.models.blocks import blocks
from core.models.linear import linear
from core.models.vocabulary import tables
from core.tuners import Tuner
from core.tuners.expand import Expand
from core.tuners.freeze import Freeze
from core.tuners.full import Full
from core.tuners.lora import Lora
from core.tuners.oft import Oft
from tests.core import tiny
from tests.core.test_memory import shapes_of

FAMILIES = ("llama", "gpt2", "gemma3_text", "qwen3_moe", "phi", "falcon", "bloom")
TUNERS: dict[str, Tuner] = {
    "full": Full(),
    "freeze": Freeze(layers=1),
    "freeze_first": Freeze(layers=-1),
    "lora": Lora(rank=2),
    "lora_last": Lora(rank=2, layers="1"),
    "dora": Lora(rank=2, dora=True),
    "oft": Oft(block=4),
    "expand": Expand(blocks=1),
}


def wanted(tuner: str, model: Any) -> str:
    """Return the pattern of the names that learn, given the model before it is changed."""
    stack = re.escape(blocks(model)[0])
    layers = "|".join(map(re.escape, linear(model)))
    if tuner.startswith(("lora", "dora", "oft")):
        parts = {"dora": r"lora_(A|B|magnitude_vector)", "oft": "oft_R"}.get(tuner, "lora_(A|B)")
        inside = rf"(?={stack}\.1\.)" if tuner == "lora_last" else ""
        return rf"base_model\.model\.{inside}({layers})\.{parts}\.default\.weight"
    return {
        "full": ".*",
        "freeze": rf"{stack}\.1\..*",
        "freeze_first": rf"{stack}\.0\..*",
        "expand": rf"{stack}\.2\..*",
    }[tuner]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("name", TUNERS)
def test_names(name: str, model_type: str, tmp_path: Path) -> None:
    model: Any = tiny.tiny_model(model_type).to(torch.bfloat16)
    pattern = re.compile(wanted(name, model))
    if (name, model_type) == ("oft", "gpt2"):  # of Conv1D layers, which peft can't turn
        shapes = shapes_of(model, tmp_path)
        for ask in (lambda: TUNERS[name].attach(model, tmp_path), lambda: TUNERS[name].check(shapes)):
            with pytest.raises(InputError) as caught:
                ask()
            assert (caught.value.code, caught.value.place) == ("oft.transposed", "tuner")
        Oft(block=4, targets=["lm_head"]).check(shapes)  # which is no Conv1D
        Oft(block=4, targets=["lm_head"]).attach(model, tmp_path)
        return
    tuned: Any = TUNERS[name].attach(model, tmp_path)
    learning = {key for key, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert learning == {key for key, _ in tuned.named_parameters() if pattern.fullmatch(key)}
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    if name in ("lora", "oft"):
        layers = {key.split(".lora_")[0].split(".oft_")[0] for key in learning}
        assert len(layers) >= 4 and not any(end in key for key in layers for end in ("lm_head", "router", ".gate."))


@pytest.mark.parametrize("name", ["freeze", "freeze_first", "lora", "lora_last", "dora", "full"])
def test_rows_of_new_tokens_learn_beside_them(name: str, tmp_path: Path) -> None:
    plain, model = tiny.tiny_model("llama"), tiny.tiny_model("llama")
    ends = set(tables(model))
    before = {key for key, p in TUNERS[name].attach(plain, tmp_path).named_parameters() if p.requires_grad}
    tuned: Any = TUNERS[name].attach(model, tmp_path, [250, 251])
    more = {key for key, p in tuned.named_parameters() if p.requires_grad} - before
    places = {
        key.partition(".token_adapter")[0].removeprefix("base_model.model.").removesuffix(".weight") for key in more
    }
    assert places == (set() if name == "full" else {end.removesuffix(".weight") for end in ends})
