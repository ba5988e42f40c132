"""The size of a model from its config alone: right to a tenth for all types of the registry, or not told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from core import config
from core.forecast import forecast, unforeseen
from core.models.decoder import of_config
from core.models.inspect import of_text
from core.models.registry import entries
from core.models.shapes import WHOLE_TYPE
from tests.core import tiny

UNBUILT = {"aya_vision", "chameleon", "dbrx", "dots1", "gemma3n", "hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl",
           "lfm2_moe", "ministral", "nemotron"}  # fmt: skip
"""Types of whose own defaults no model can be made."""
TYPES = sorted({entry.type for entry in entries() if entry.type} - UNBUILT)
TOLD = ("arcee", "jais2", "nanochat", "apertus", "persimmon", "fuyu", "gemma4", "qwen2_5_omni", "paddleocr_vl",
        "glm_ocr", "exaone4_5", "paligemma", "voxtral", "llama", "mixtral", "deepseek_v3", "llava")  # fmt: skip


def of_type(kind: str) -> Any:
    return CONFIG_MAPPING[kind](**{"enable_audio_output": False} if "omni" in kind else {})


@pytest.mark.parametrize("kind", TYPES)
def test_size_of_the_defaults_of_a_type(kind: str) -> None:
    settings = of_type(kind)
    told = json.loads(settings.to_json_string(use_diff=False))
    shapes = of_config(of_text(told) | {WHOLE_TYPE: kind})
    assert shapes or kind not in TOLD
    if shapes:
        with torch.device("meta"):
            model = next(auto for auto, names in tiny.AUTO if kind in names).from_config(settings)
        real = sum(weight.numel() for weight in model.parameters())
        assert sum(map(math.prod, shapes.tensors.values())) == pytest.approx(real, rel=0.1)


def test_odd_eyes_give_no_size() -> None:
    usual = json.loads(CONFIG_MAPPING["llava"]().to_json_string(use_diff=False))
    assert of_config(of_text(usual))
    for change in ({"hidden_size": "wide"}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": None}):
        assert of_config(of_text(usual | {"vision_config": usual["vision_config"] | change})) is None, change


@pytest.mark.parametrize("kind", ["jamba", "qwen3_5", "phi4_multimodal"])
def test_no_plan_where_a_config_tells_too_little(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(of_type(kind).to_json_string(use_diff=False))
    run = config.run({"model": {"path": str(tmp_path)}, "hardware": {"device": "cpu"}})
    assert forecast(run, tmp_path) is None and unforeseen(run, tmp_path).code == "memory.size"
