"""What a model has no place for is told before its weights are read, whatever its type."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from core.errors import InputError
from core.models.loading import load_model
from core.sections import Hardware, Model
from core.tuners import Tuner
from core.tuners.expand import Expand
from core.tuners.freeze import Freeze
from core.tuners.full import Full
from core.tuners.lora import Lora
from core.tuners.oft import Oft
from tests.core import tiny

CASES: dict[str, tuple[str, Tuner, str]] = {
    "holder": ("mixtral", Lora(targets=["self_attn"]), "tuner.no_adapter"),
    "typo": ("gpt_neox", Lora(targets=["q_porj"]), "tuner.no_module"),
    "whole": ("mixtral", Lora(extra=["norn"]), "tuner.no_module"),
    "layer": ("mixtral", Lora(layers="2"), "lora.no_layer"),
    "crosswise": ("openai-gpt", Oft(block=4), "oft.transposed"),
    "turned": ("mixtral", Oft(block=4, targets=["q_porj"]), "tuner.no_module"),
    "frozen": ("mixtral", Freeze(layers=3), "freeze.layers"),
    "frozen whole": ("mixtral", Freeze(extra=["norn"]), "tuner.no_module"),
    "blocks": ("mixtral", Expand(blocks=3), "expand.blocks"),
    "experts": ("jamba", Expand(blocks=1), "expand.unfit"),
    "fit": ("mixtral", Lora(targets=["q_proj", "lm_head"], extra=["norm"], layers=""), "model.weights_missing"),
    "turning": ("mixtral", Oft(block=4), "model.weights_missing"),
    "longer": ("mixtral", Expand(blocks=2), "model.weights_missing"),
    "freezing": ("mixtral", Freeze(layers=1, extra=["lm_head"]), "model.weights_missing"),
    "full": ("mixtral", Full(), "model.weights_missing"),
}


@pytest.mark.parametrize("case", CASES)
def test_settings_are_looked_at_before_weights_are_read(case: str, tmp_path: Path) -> None:
    """A weight is missing from the file: who reads it says so."""
    model_type, tuner, code = CASES[case]
    tiny.tiny_model(model_type).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(name for name in weights if "norm" in name or "ln_" in name)]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_model(Model(path=str(tmp_path)), tmp_path, Hardware(device="cpu"), training=True, check=tuner.check_made)
    assert caught.value.code == code
