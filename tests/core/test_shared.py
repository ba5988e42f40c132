"""Layers that share their weights, as Zamba's blocks do: they learn as one, and can be merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.models.copies import merged
from core.models.shapes import Shapes
from core.tuners import Tuner
from core.tuners.lora import Lora
from core.tuners.oft import Oft
from tests.core import tiny
from tests.core.test_tuners import learn_a_little, logits


@pytest.mark.parametrize("tuner", [Lora(rank=2), Lora(rank=2, dora=True), Lora(rank=2, pissa=True), Oft(block=16)])
def test_they_learn_as_one_and_are_merged_once(tuner: Tuner, tmp_path: Path) -> None:
    model = tiny.tiny_model("zamba")
    shapes = Shapes({name: tuple(weight.shape) for name, weight in model.named_parameters()}, model.config.to_dict())
    before = logits(model)
    tuned: Any = tuner.attach(model, tmp_path)
    assert torch.allclose(logits(tuned), before, atol=1e-5)
    planned = sum(torch.Size(shape).numel() for shape in tuner.learns(shapes).values())
    assert planned == sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)
    learn_a_little(tuned)
    taught = logits(tuned)
    assert not torch.allclose(taught, before, atol=1e-3)
    assert torch.allclose(logits(merged(tuned)), taught, atol=1e-4)
