"""What learns under each tuner, and that what is saved answers like what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from core.errors import InputError
from core.tuners.freeze import Freeze
from core.tuners.full import Full
from core.tuners.lora import Lora
from tests.core.helpers import weights

IDS_B_T = torch.arange(24).reshape(2, 12)


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS_B_T).logits


def learn_a_little(model: Any, steps: int = 5) -> None:
    """Move every weight that learns, far enough to be seen in the logits."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.02)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS_B_T, labels=IDS_B_T).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("settings", [
    {}, {"rslora": True}, {"dora": True}, {"pissa": True}, {"pissa": True, "rslora": True, "dora": True},
    {"targets": ["q_proj", "self_attn.v_proj"], "dropout": 0.1},
])  # fmt: skip
def test_lora_begins_at_the_base_and_reloads_as_it_was(
    model: PreTrainedModel, tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    base = logits(model)
    tuner = Lora(rank=4, alpha=8, **settings)
    tuned: Any = tuner.attach(model, tmp_path)
    assert torch.allclose(logits(tuned), base, atol=2e-6)
    layers = [m for m in tuned.modules() if isinstance(m, LoraLayer)]
    assert len(layers) == (4 if "targets" in settings else 14)  # of 2 layers with 7 linear modules
    assert layers[0].scaling["default"] == (4 if settings.get("rslora") else 2)
    assert all("lora_" in name for name, p in tuned.named_parameters() if p.requires_grad)

    learn_a_little(tuned)
    trained = logits(tuned)
    assert (trained - base).abs().max() > 0.05
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), tmp_path)
    assert place == tmp_path / "adapter" and not list(tmp_path.glob(".*"))
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    reloaded: Any = PeftModel.from_pretrained(fresh, place)
    assert (logits(reloaded) - trained).abs().max() <= 1e-5
    assert reloaded.peft_config["default"].r == (8 if settings.get("pissa") else 4)
    assert (logits(reloaded.merge_and_unload()) - trained).abs().max() <= 1e-5


def test_pissa_begins_with_the_largest_singular_parts(model: PreTrainedModel, tmp_path: Path) -> None:
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    tuned: Any = Lora(rank=4, alpha=8, pissa=True).attach(model, tmp_path)
    layer = tuned.base_model.model.model.layers[0].mlp.up_proj
    after = torch.linalg.svdvals(layer.get_base_layer().weight.detach())
    assert torch.allclose(after[:-4], torch.linalg.svdvals(before)[4:], atol=1e-5)
    assert (tmp_path / "beginning" / "adapter_model.safetensors").is_file()


def test_lora_names_what_does_not_fit(model: PreTrainedModel, tmp_path: Path) -> None:
    for tuner, code in ((Lora(targets=["query"]), "tuner.no_module"), (Lora(rank=64, pissa=True), "lora.pissa_rank")):
        with pytest.raises(InputError) as caught:
            tuner.attach(model, tmp_path)
        assert caught.value.code == code
        if code == "tuner.no_module":
            assert "q_proj" in caught.value.params["known"]


@pytest.mark.parametrize(("settings", "learning"), [
    ({"layers": 1}, {"model.layers.1."}),
    ({"layers": -1}, {"model.layers.0."}),
    ({"layers": 2}, {"model.layers.0.", "model.layers.1."}),
    ({"layers": 1, "extra": ["lm_head", "model.norm"]}, {"model.layers.1.", "lm_head.", "model.norm."}),
    ({"layers": 0, "extra": ["q_proj"]}, {"model.layers.0.self_attn.q_proj.", "model.layers.1.self_attn.q_proj."}),
])  # fmt: skip
def test_freeze_moves_only_its_layers(
    model: PreTrainedModel, tiny_model: Path, tmp_path: Path, settings: dict[str, Any], learning: set[str]
) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tuner = Freeze(**settings)
    tuned = tuner.attach(model, tmp_path)
    learn_a_little(tuned, 2)
    moved = {name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith(tuple(learning))}
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    assert torch.equal(logits(reloaded), logits(tuned))
    assert AutoTokenizer.from_pretrained(place).chat_template


def test_freeze_names_what_does_not_fit(model: PreTrainedModel, tmp_path: Path) -> None:
    for tuner, code in ((Freeze(layers=3), "freeze.layers"), (Freeze(extra=["head"]), "tuner.no_module")):
        with pytest.raises(InputError) as caught:
            tuner.attach(model, tmp_path)
        assert caught.value.code == code


def test_what_learns_is_fp32_on_a_bf16_base(tiny_model: Path, tmp_path: Path) -> None:
    for tuner in (Full(), Freeze(layers=1), Lora(rank=2), Lora(rank=2, pissa=True)):
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
        tuned: Any = tuner.attach(base, tmp_path / tuner.kind)
        assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
        frozen = {p.dtype for p in tuned.parameters() if not p.requires_grad}
        assert frozen == (set() if isinstance(tuner, Full) else {torch.bfloat16})


def test_an_old_result_is_replaced_whole(model: PreTrainedModel, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale.safetensors").write_bytes(b"")
    place = Full().save(model, AutoTokenizer.from_pretrained(tiny_model), tmp_path)
    assert not (place / "stale.safetensors").exists() and weights(place)


def test_targets_are_names_ends_of_names_or_patterns(model: PreTrainedModel, tmp_path: Path) -> None:
    for targets, count in ((["q_proj"], 2), (["layers.1.mlp.up_proj"], 1), ([r".*\.layers\.0\..*_proj"], 7),
                           (["all-linear", "embed_tokens"], 15)):  # fmt: skip
        fresh = AutoModelForCausalLM.from_config(model.config)
        tuned: Any = Lora(rank=4, targets=targets).attach(fresh, tmp_path)
        assert len([module for module in tuned.modules() if isinstance(module, LoraLayer)]) == count, targets
    for target, code in (("magic_proj", "tuner.no_module"), ("(", "tuner.pattern")):
        with pytest.raises(InputError) as caught:
            Lora(targets=[target]).attach(model, tmp_path)
        assert (caught.value.code, caught.value.place) == (code, "tuner.lora.targets")


def test_modules_that_learn_whole_are_saved_beside_the_adapter(
    model: PreTrainedModel, tiny_model: Path, tmp_path: Path
) -> None:
    tuner = Lora(rank=4, extra=["embed_tokens", "lm_head"])
    tuned: Any = tuner.attach(model, tmp_path)
    learning = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert {name.split(".modules_to_save")[0].rpartition(".")[2] for name in learning} == {"embed_tokens", "lm_head"}
    learn_a_little(tuned)
    trained = logits(tuned)
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), tmp_path)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert (logits(PeftModel.from_pretrained(fresh, place)) - trained).abs().max() <= 1e-5
    with pytest.raises(InputError) as caught:
        Lora(extra=["magic"]).attach(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path)
    assert (caught.value.code, caught.value.place) == ("tuner.no_module", "tuner.lora.extra")
