"""What learns under each tuner, and that what is saved answers like what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainingArguments

from core import config
from core.errors import InputError
from core.training.objective import NextToken
from core.training.ordered import Ordered
from core.tuners.freeze import Freeze
from core.tuners.full import Full
from core.tuners.lora import Lora
from core.tuners.oft import Oft
from tests.core import tiny
from tests.core.helpers import of_type, train, weights

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


def test_pissa_begins_where_weights_lie_crosswise(tmp_path: Path) -> None:
    model = tiny.tiny_model("gpt2").eval()
    ids = torch.arange(3, 14)[None]
    before = model(ids).logits
    tuned: Any = Lora(rank=4, pissa=True).attach(model, tmp_path)
    assert torch.allclose(tuned(ids).logits, before, atol=1e-4)
    attention = tuned.get_base_model().transformer.h[0].attn.c_attn
    parts = torch.linalg.svdvals(attention.get_base_layer().weight + attention.get_delta_weight("default"))
    rest = torch.linalg.svdvals(attention.get_base_layer().weight)
    assert torch.allclose(rest[: len(parts) - 4], parts[4:], atol=1e-4)


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
    with pytest.raises(InputError) as caught:
        Lora(targets=["magic_proj"]).attach(model, tmp_path)
    assert (caught.value.code, caught.value.place) == ("tuner.no_module", "tuner.lora.targets")


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


def test_oft_turns_weights_and_keeps_their_lengths(model: PreTrainedModel, tiny_model: Path, tmp_path: Path) -> None:
    base, tuner = logits(model), Oft(block=16)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    tuned: Any = tuner.attach(model, tmp_path)
    assert torch.allclose(logits(tuned), base, atol=2e-6)
    assert all("oft_" in name for name, p in tuned.named_parameters() if p.requires_grad)
    learn_a_little(tuned)
    trained = logits(tuned)
    assert (trained - base).abs().max() > 0.05
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), tmp_path)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    reloaded: Any = PeftModel.from_pretrained(fresh, place)
    assert (logits(reloaded) - trained).abs().max() <= 1e-5
    merged = reloaded.merge_and_unload()
    assert (logits(merged) - trained).abs().max() <= 1e-4
    after = merged.model.layers[0].mlp.up_proj.weight
    # the inputs of each output are turned: a row keeps its length, as far as the series of the Cayley transform goes
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.allclose(after.norm(dim=1), before.norm(dim=1), rtol=3e-2)
    with pytest.raises(InputError) as caught:
        Oft(block=7).attach(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path)
    assert (caught.value.code, caught.value.place) == ("oft.block", "tuner.oft.block")


@pytest.mark.parametrize(("layers", "count"), [("", 14), ("0-1", 14), ("1", 7), ("0, 1", 14)])
def test_layers_limit_where_adapters_stand(
    model: PreTrainedModel, tiny_model: Path, tmp_path: Path, layers: str, count: int
) -> None:
    tuner = Lora(rank=4, layers=layers)
    tuned: Any = tuner.attach(model, tmp_path)
    names = [name for name, module in tuned.named_modules() if isinstance(module, LoraLayer)]
    assert len(names) == count and (layers != "1" or all(".layers.1." in name for name in names))
    learn_a_little(tuned, 2)
    trained = logits(tuned)
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), tmp_path)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert (logits(PeftModel.from_pretrained(fresh, place)) - trained).abs().max() <= 1e-5


def test_layers_that_are_none_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    for layers in ("x", "3-1", "1,,2", "1-", "-1", "0-99999", " "):
        with pytest.raises(InputError) as caught:
            config.resolve({"tuner": {"kind": "lora", "layers": layers}})
        assert (caught.value.code, caught.value.place) == ("lora.layers", "tuner.lora.layers"), layers
        assert caught.value.params["given"] == layers
    with pytest.raises(InputError) as caught:
        Lora(layers="0-2").attach(model, tmp_path)
    assert (caught.value.code, caught.value.place) == ("lora.no_layer", "tuner.lora.layers")
    assert caught.value.params == {"given": 2, "last": 1}


def test_the_second_matrix_learns_faster(make_run: Callable[..., Path]) -> None:
    """Against peft's own LoRA+; Adam's first step is as long as the learning rate, whatever the gradient."""
    moved = []
    for ratio in (1, 16):
        run = make_run(f"ratio {ratio}", f"tuner.plus_ratio={ratio}", "training.max_steps=1", "training.warmup=0",
                       "training.schedule=constant", "optimizer.learning_rate=0.001")  # fmt: skip
        train(run)
        moved.append({name: tensor.abs().max().item() for name, tensor in weights(run / "adapter").items()
                      if "lora_B" in name})  # fmt: skip
        assert [event["lr"] for event in of_type(run, "step")] == [0.001]
    assert all(moved[0][name] == pytest.approx(0.001, rel=1e-2) for name in moved[0])
    assert all(moved[1][name] == pytest.approx(0.016, rel=1e-2) for name in moved[0])


def test_groups_are_those_of_peft(model: PreTrainedModel, tmp_path: Path) -> None:
    tuned: Any = Lora(rank=4, plus_ratio=16).attach(model, tmp_path)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-3)
    trainer = Ordered(model=tuned, args=arguments, pace=Lora(plus_ratio=16).pace, objective=NextToken())
    made = trainer.create_optimizer()
    theirs = create_loraplus_optimizer(tuned, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    rates = [{id(p): group["lr"] for group in one.param_groups for p in group["params"]} for one in (made, theirs)]
    assert rates[0] == rates[1] and set(rates[0].values()) == {1e-3, 16e-3}


def test_identities_of_the_kin(model: PreTrainedModel, tiny_model: Path, tmp_path: Path) -> None:
    """What LoRA, rsLoRA and DoRA compute, by their papers' formulas on one layer."""
    x_B_I = torch.randn(3, 64)
    for settings, scale in (({}, 8 / 4), ({"rslora": True}, 8 / 4**0.5), ({"dora": True}, 8 / 4)):
        fresh = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        tuned: Any = Lora(rank=4, alpha=8, **settings).attach(fresh, tmp_path)
        layer = tuned.base_model.model.model.layers[0].mlp.up_proj
        weight_O_I = layer.get_base_layer().weight
        assert torch.allclose(layer(x_B_I), x_B_I @ weight_O_I.T, atol=1e-5)
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
        moved_O_I = weight_O_I + scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        if settings.get("dora"):
            moved_O_I = weight_O_I.norm(dim=1, keepdim=True) * moved_O_I / moved_O_I.norm(dim=1, keepdim=True)
        assert torch.allclose(layer(x_B_I), x_B_I @ moved_O_I.T, atol=1e-5)
        assert not torch.allclose(layer(x_B_I), x_B_I @ weight_O_I.T, atol=1e-2)


def test_eva_begins_with_the_directions_of_the_inputs(model: PreTrainedModel, tiny_model: Path, tmp_path: Path) -> None:
    """Against the full decomposition of what the layer is given: the first directions hold as much as any could."""
    chance = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(320, (length,), generator=chance)} for length in (40, 9, 77, 25)]
    base, tuner = logits(model), Lora(rank=4, eva=True)
    tuned: Any = tuner.attach(model, tmp_path, (), rows)
    assert torch.equal(logits(tuned), base)
    for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"):
        layer = tuned.base_model.model.model.get_submodule(name)
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0][0]))
        for row in rows:  # one by one: no padding
            tuned(row["input_ids"][None])
        hook.remove()
        X_N_I, A_R_I = torch.cat(seen).detach(), layer.lora_A["default"].weight.detach()
        assert torch.allclose(A_R_I @ A_R_I.T, torch.eye(4), atol=1e-4)
        best = torch.linalg.svdvals(X_N_I)[:4].square().sum()
        assert (X_N_I @ A_R_I.T).square().sum() >= 0.99 * best
    learn_a_little(tuned)
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), tmp_path)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert (logits(PeftModel.from_pretrained(fresh, place)) - logits(tuned)).abs().max() <= 1e-5


def test_eva_begins_where_an_expert_sees_few_tokens(tmp_path: Path) -> None:
    mixture: Any = tiny.tiny_model("qwen3_moe")
    tuned: Any = Lora(rank=8, eva=True).attach(mixture, tmp_path, (), [{"input_ids": [1, 2, 3]}])
    assert all(torch.isfinite(p).all() for p in tuned.parameters())


def test_only_one_beginning() -> None:
    stream = ["tuner.eva=true", "data.streaming=true", "training.max_steps=1"]
    for settings, code in ((["tuner.eva=true", "tuner.pissa=true"], "lora.beginnings"), (stream, "lora.eva_stream")):
        with pytest.raises(InputError) as caught:
            config.resolve(config.override(settings))
        assert (caught.value.code, caught.value.place) == (code, "tuner.lora.eva")


@pytest.mark.parametrize(("settings", "tokens"), [
    ({"targets": ["q_proj", "embed_tokens"]}, [320, 321]), ({"targets": ["lm_head"]}, [320]),
    ({"targets": ["embed_tokens"], "pissa": True}, []),
])  # fmt: skip
def test_no_adapter_at_a_table_that_learns_otherwise(
    model: PreTrainedModel, tmp_path: Path, settings: dict[str, Any], tokens: list[int]
) -> None:
    with pytest.raises(InputError) as caught:
        Lora(rank=2, **settings).attach(model, tmp_path, tokens)
    assert (caught.value.code, caught.value.place) == ("lora.table", "tuner.lora.targets")
