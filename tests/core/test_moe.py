"""Mixtures of experts: blocks that stay whole under ZeRO-3, balance of the routers, adapters on experts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import transformers_weight_conversion as conversion
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from core import config
from core.errors import InputError
from core.export.merge import export
from core.forecast import forecast
from core.models import moe
from core.models.adapters import load_adapter
from core.models.inspect import inspect
from core.models.loading import load_model
from core.models.registry import entries
from core.models.shapes import MLP, OF_EXPERTS
from core.sections import Hardware, Model
from core.training.objective import NextToken
from core.tuners.lora import Lora
from core.tuners.oft import Oft
from tests.core import tiny
from tests.core.helpers import of_type, train
from tests.core.models_fixtures import context, make_adapter
from tests.core.test_memory import run_of, shapes_of

CPU = Hardware(device="cpu")
TYPES = sorted(
    {entry.type for entry in entries() if entry.active and entry.type}
    | {"mistral4", "deepseek_v4", "flex_olmo", "laguna"}
)
DENSE: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"first_k_dense_replace": 0},
    "hunyuan_v1_moe": {"num_experts": 4},
    "kimi_k25": {"first_k_dense_replace": 0},
    "gemma4": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
}
"""Types whose first layers, or defaults, have no experts, and how they get them."""
WITHOUT = {"mistral3"}
"""Types whose text part may be of any type; the one with experts is mistral4."""
BLOCKS = {"gpt_oss": "GptOssMLP", "dbrx": "DbrxFFN", "gemma4": "Gemma4TextDecoderLayer", "jetmoe": "JetMoeMoE"}
UNSTACKED = {"dbrx"}
"""Experts that lie below each other in one matrix."""


def tiny_config(kind: str) -> Any:
    made = tiny.tiny_config(kind)
    for name, value in DENSE.get(kind, {}).items():
        setattr(made.get_text_config(), name, value)
    return made


def tiny_moe(kind: str) -> Any:
    torch.manual_seed(0)
    return next(auto for auto, names in tiny.AUTO if kind in names).from_config(tiny_config(kind))


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in WITHOUT])
def test_blocks_of_experts_and_balance_of_routers(kind: str) -> None:
    model = tiny_moe(kind)
    found = moe.leaves(model)
    blocks = [module for module in model.modules() if isinstance(module, tuple(found))]
    assert blocks and (BLOCKS.get(kind, "") or "Mo") in found[0].__name__
    within = {id(p) for block in blocks for p in block.parameters()}
    stacked = moe.parameters(model)
    weights = [p for name, p in model.named_parameters() if name.endswith(tuple(f".{last}" for last in stacked))]
    assert bool(stacked) == (kind not in UNSTACKED) and {id(p) for p in weights} <= within
    assert all(weight.ndim == 3 for weight in weights)

    batch = tiny.tiny_batch()
    try:
        moe.balance(model)
    except InputError as error:
        assert (error.code, error.place) == ("moe.no_router", "training.router_aux_loss")
        return
    learned, told = NextToken()(model.train(), batch, None)
    close = 1e-3 if kind == "phimoe" else 1e-5  # its routers draw lots in training
    assert learned.item() == pytest.approx(model.eval()(**batch).loss.item(), abs=close)
    assert told["aux_loss"].item() > 0 and NextToken()(model, batch, None)[1] == {}


def test_models_without_experts_have_none() -> None:
    model = tiny.tiny_model("llama")
    assert moe.leaves(model) == [] and moe.parameters(model) == []
    for ask in (lambda: moe.balance(model), lambda: Lora(experts=True).attach(model, Path())):
        with pytest.raises(InputError) as caught:
            ask()
        assert caught.value.code in ("moe.no_router", "lora.no_experts")


@pytest.mark.parametrize("kind", [*(kind for kind in TYPES if kind not in WITHOUT), "llama", "gemma3", "gpt2", "phi3"])
def test_a_config_tells_of_experts(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """So that a board can refuse balance of routers where there are none."""
    shutil.copytree(tiny_model, folder := tmp_path / kind)
    tiny_config(kind).save_pretrained(folder)
    assert inspect(folder).experts == (kind in TYPES)


@pytest.mark.parametrize("wrapped", [False, True])
def test_balance_is_the_loss_of_the_paper(wrapped: bool, tmp_path: Path) -> None:
    """N · Σ f·P over the experts, from what the routers say; also beside an adapter."""
    model = tiny.tiny_model("mixtral")
    said: list[torch.Tensor] = []
    routers = [block.gate for block in model.modules() if isinstance(block, tuple(moe.leaves(model)))]
    hidden = [
        router.register_forward_pre_hook(lambda _, args: said.append(args[0].reshape(-1, 64))) for router in routers
    ]
    tuned: Any = Lora(rank=2).attach(model, tmp_path) if wrapped else model
    batch = tiny.tiny_batch()
    del batch["attention_mask"]
    tuned.train()(**batch)
    assert len(hidden) == len(said) == 2
    scores = [inputs @ router.weight.T for inputs, router in zip(said, routers, strict=True)]
    probabilities = torch.cat(scores).softmax(-1)
    taken = torch.nn.functional.one_hot(probabilities.topk(2).indices, 4).float()
    wanted = 4 * (taken.mean(0).sum(0) * probabilities.mean(0)).sum()
    assert wanted.item() == pytest.approx(load_balancing_loss_func(tuple(scores), 4, 2).item(), abs=1e-6)
    moe.balance(tuned)
    assert NextToken()(tuned, batch, None)[1]["aux_loss"].item() == pytest.approx(wanted.item(), abs=1e-5)


@pytest.fixture
def mixture(tiny_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    """`mixture("mixtral")`: a folder with a tiny mixture of experts and the tokenizer of the tiny model."""

    def make(kind: str) -> Path:
        folder = tmp_path / kind
        config_ = tiny.tiny_config(kind)
        config_.vocab_size = 448
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config_).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / file).write_bytes((tiny_model / file).read_bytes())
        return folder

    return make


def test_a_run_balances_in_training_alone(make_run: Callable[..., Path], mixture: Callable[[str], Path]) -> None:
    folder = mixture("mixtral")
    losses = {}
    for name, settings in {
        "plain": (),
        "balanced": ("training.router_aux_loss=0.5",),
        "parts": ("training.router_aux_loss=0.5", "training.batch_size=2", "training.accumulation=2"),
    }.items():
        run = make_run(name, f"model.path={folder}", "training.max_steps=1", "training.eval_every=1",
                       "optimizer.learning_rate=0.000001", *settings)  # fmt: skip
        train(run)
        losses[name] = [of_type(run, "step")[0]["loss"], of_type(run, "eval")[-1]["loss"]]
    added = losses["balanced"][0] - losses["plain"][0]
    assert 0.4 < added < 1.2 and losses["balanced"][1] == pytest.approx(losses["plain"][1], abs=1e-4)
    assert losses["parts"][0] - losses["plain"][0] == pytest.approx(added, rel=0.05), "once a step, not once a batch"


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_adapters_on_experts_learn_and_come_back(mixture: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    folder = mixture(kind)
    spec = Model(path=str(folder))
    ids_B_T = torch.arange(24).reshape(2, 12)

    def logits(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return model.eval()(input_ids=ids_B_T).logits

    base = load_model(spec, tmp_path, CPU, training=True)
    before, tuner = logits(base), Lora(rank=2, experts=True, rslora=True)
    tuned: Any = tuner.attach(base, tmp_path)
    assert torch.allclose(logits(tuned), before, atol=2e-6)
    learning = {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}
    assert len([name for name in learning if ".experts." in name and "lora_B" in name]) == 4  # two layers, two weights
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.02)
    for _ in range(4):
        optimizer.zero_grad()
        tuned.train()(input_ids=ids_B_T, labels=ids_B_T).loss.backward()
        optimizer.step()
    moved = {name for name, p in tuned.named_parameters() if p.requires_grad and not torch.equal(p, learning[name])}
    assert moved == set(learning)
    trained = logits(tuned)
    adapter = tuner.save(tuned, AutoTokenizer.from_pretrained(folder), tmp_path)
    again = load_adapter(load_model(spec, tmp_path, CPU), adapter, "again")
    assert (logits(again) - trained).abs().max() <= 1e-5 < (trained - before).abs().max()
    merged = again.merge_and_unload()
    assert (logits(merged) - trained).abs().max() <= 1e-5
    assert not [name for name, _ in merged.named_parameters() if "lora_" in name]
    with context(tmp_path) as job:
        whole: Any = config.resolve({"model": {"path": str(folder)}, "source": str(adapter)}, job="export")
        made = export(whole, job)
    exported = load_model(Model(path=str(made["folder"])), tmp_path, CPU)
    assert (logits(exported) - trained).abs().max() <= 1e-4


def test_experts_for_images_get_no_adapter(tmp_path: Path) -> None:
    tuned: Any = Lora(rank=2, experts=True).attach(tiny_moe("ernie4_5_vl_moe"), tmp_path)
    of_experts = {name for name, p in tuned.named_parameters() if p.requires_grad and "moe.experts" in name}
    assert of_experts and all(".text_moe.experts" in name for name in of_experts)
    tuned.save_pretrained(tmp_path / "adapter")
    again = load_adapter(tiny_moe("ernie4_5_vl_moe"), tmp_path / "adapter", "again")
    assert of_experts == {name.replace(".again", ".default") for name, _ in again.named_parameters()
                          if "lora_" in name and "moe.experts" in name}  # fmt: skip


def test_experts_in_one_matrix_are_told_of_before_the_start_and_after(tmp_path: Path) -> None:
    model, tuner = tiny_moe("dbrx"), Lora(rank=2, experts=True)
    for ask in (lambda: tuner.check(shapes_of(model, tmp_path)), lambda: tuner.attach(model, tmp_path)):
        with pytest.raises(InputError) as caught:
            ask()
        assert (caught.value.code, caught.value.params) == ("lora.experts_in_one", {"model": "dbrx"})


def test_what_adapters_on_experts_can_not_be_is_refused_before_the_start() -> None:
    for settings, code in (
        (["tuner.dropout=0.1"], "lora.experts"),
        (["tuner.dora=true"], "lora.experts"),
        (["tuner.pissa=true"], "lora.experts"),
        (["model.quantizer.kind=bnb_4bit"], "lora.experts_packed"),
    ):
        with pytest.raises(InputError) as caught:
            config.resolve(config.override(["tuner.experts=true", *settings]))
        assert (caught.value.code, caught.value.place) == (code, "tuner.lora.experts")


def test_adapters_on_experts_are_trained_on_alone(mixture: Callable[[str], Path], workspace: Path) -> None:
    """They don't add up: under another, or above one, they are refused."""
    folder, run = mixture("mixtral"), workspace / "runs" / "new"
    run.mkdir()
    make_adapter(workspace / "plain", folder, target_modules=["q_proj"])
    base = AutoModelForCausalLM.from_pretrained(folder)
    tuner: Any = Lora(rank=2, experts=True)
    tuner.save(tuner.attach(base, run), AutoTokenizer.from_pretrained(folder), workspace / "experts")
    for settings in ({"start": ["experts/adapter"]}, {"start": ["plain", "experts/adapter"], "go_on": True}):
        with pytest.raises(InputError) as caught:
            Lora(rank=2, **settings).attach(AutoModelForCausalLM.from_pretrained(folder), run)
        assert (caught.value.code, caught.value.place) == ("start.not_lora", "tuner.lora.start")
        assert caught.value.params["what"] == "target_parameters"
    tuner = Lora(start=["experts/adapter"], go_on=True, experts=True)
    tuned: Any = tuner.attach(AutoModelForCausalLM.from_pretrained(folder), run)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids_B_T = torch.arange(24).reshape(2, 12)
    wanted = tuned.eval()(ids_B_T).logits
    adapter = tuner.save(tuned, AutoTokenizer.from_pretrained(folder), run)
    again = load_adapter(AutoModelForCausalLM.from_pretrained(folder), adapter, "again")
    assert torch.allclose(again(ids_B_T).logits, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in WITHOUT])
def test_no_expert_learns_that_nobody_asked_for(kind: str, tmp_path: Path) -> None:
    """peft turns names of the layers of other MLPs into adapters on all experts; the planner counts what learns."""
    model = tiny_moe(kind)
    model.save_pretrained(tmp_path / "model")
    planned = forecast(run_of("tuner.rank=4", f"model.path={tmp_path / 'model'}"), tmp_path)
    learning = {name: p for name, p in Lora(rank=4).attach(model, tmp_path).named_parameters() if p.requires_grad}
    assert not any(re.search(r"(?<!shared_)experts\.", name) for name in learning)
    assert planned and planned.plan.trainable == sum(p.numel() for p in learning.values())


def test_types_whose_mlps_are_taken_for_experts_are_those_of_peft() -> None:
    table = conversion._MODEL_TO_CONVERSION_PATTERN
    taken = {
        kind.removesuffix("_text")
        for kind in CONFIG_MAPPING_NAMES
        if table.get(kind) in conversion._MOE_TARGET_MODULE_MAPPING and get_checkpoint_conversion_mapping(kind)
    }
    assert taken <= set(OF_EXPERTS)
    parts = {old for names in conversion._MOE_TARGET_MODULE_MAPPING.values() for old in names} - {"gate"}
    assert parts == set(MLP)


def test_shared_experts_that_peft_does_not_load_are_left_out_and_told(tmp_path: Path) -> None:
    model = tiny_moe("laguna")
    model.save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "made elsewhere", tmp_path / "base", target_modules=["shared_experts.up_proj"])
    with pytest.raises(InputError) as caught:
        load_adapter(tiny_moe("laguna"), adapter, "tuned")
    assert (caught.value.code, caught.value.place) == ("adapter.partial", "tuned")
    assert "shared_experts.up_proj.lora_B" in str(caught.value.params["names"])
    tuned: Any = Lora(rank=2).attach(model, tmp_path)
    assert not any("mlp" in name for name, p in tuned.named_parameters() if p.requires_grad)
    tuned.save_pretrained(tmp_path / "ours")
    load_adapter(tiny_moe("laguna"), tmp_path / "ours", "tuned")


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"dora": True}, {"pissa": True}, {"layers": "0"}])
def test_beside_experts_adapters_of_all_kinds_stand(settings: dict[str, Any], tmp_path: Path) -> None:
    """On experts that peft would take for targets they could not."""
    model = tiny_moe("glm4_moe")
    tuned = Lora(rank=2, **settings).attach(model, tmp_path)
    learning = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert learning and all(".self_attn." in name for name in learning)
    assert ("layers" not in settings) or all(".layers.0." in name for name in learning)


def test_layers_that_peft_would_take_for_experts_are_no_targets(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Lora(targets=["o_proj", "gate_proj"]).attach(tiny_moe("deepseek_v3"), tmp_path)
    assert (caught.value.code, caught.value.place) == ("lora.of_experts", "tuner.lora.targets")
    assert caught.value.params == {"module": "gate_proj", "type": "deepseek_v3"}
    Oft(targets=["gate_proj"], block=16).attach(tiny_moe("deepseek_v3"), tmp_path)  # which peft leaves as they are


def test_oft_turns_inputs_of_four_dimensions(tmp_path: Path) -> None:
    """The attention of DeepSeek expands its latent vectors so."""
    model, ids = tiny_moe("deepseek_v3").eval(), torch.arange(10)[None]
    before = model(ids).logits
    tuned: Any = Oft(targets=["kv_b_proj"], block=16).attach(model, tmp_path)
    assert torch.allclose(tuned(ids).logits, before, atol=1e-5)
    layer = tuned.get_base_model().model.layers[0].self_attn.kv_b_proj
    layer.oft_R["default"].weight.data.normal_(std=0.1)
    given = torch.randn(2, 1, 5, layer.in_features)
    assert torch.allclose(layer(given), torch.stack([layer(row) for row in given]), atol=1e-6)
