"""Whether a run will fit into memory, in words."""

from __future__ import annotations

from app import fit
from core import config
from core.forecast import foresee
from core.models.decoder import of_config
from core.models.room import Room


def test_answers_at_once_are_told_and_named() -> None:
    shapes = of_config({"model_type": "llama", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4,
                        "num_attention_heads": 8, "vocab_size": 32_000})  # fmt: skip
    assert shapes
    settings = ["stage.kind=grpo", "stage.group=64", "training.batch_size=8", "data.cutoff=512",
                "stage.drawing.max_new_tokens=64"]  # fmt: skip
    run = config.run(config.override(settings))
    found = foresee(run, shapes, 0, Room("cuda", 24 << 30, 24 << 30))
    assert "512 × 575" in fit.lines("en", run, found, None)[1]
    assert fit.fix_told("en", found.fixes[0]).startswith("Answers a part: ")
