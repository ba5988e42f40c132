"""The memory planner: what it counts beside what autograd, optimizers and quantizers really hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from core import config
from core.config import Run
from core.data.pack import Flat
from core.errors import InputError
from core.forecast import TIGHT, forecast, foresee, unforeseen
from core.models.decoder import of_config
from core.models.headers import tensors
from core.models.memory import LOGIT_BYTES, plan
from core.models.renamed import as_loaded
from core.models.room import Room, _smi, gpus, room
from core.models.shapes import Shapes
from core.models.varlen import isolate
from core.optimizers.steps.badam import ByBlock, parted
from core.sections import Hardware
from tests.core.models_fixtures import make_adapter
from tests.core.seeing import TOKENS, make_llava

ROWS, LENGTH, WORDS = 4, 64, 500
SIZES = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": WORDS, "pad_token_id": 0, "max_position_embeddings": 256,
}  # fmt: skip
LATENT = {"kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "head_dim": 16,
          "num_key_value_heads": 4}  # fmt: skip
SHARED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "n_group": 1, "topk_group": 1,
          "first_k_dense_replace": 1, "n_shared_experts": 1}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 160,
    },
    "minicpm3": LATENT | {"q_lora_rank": 48},
    "deepseek_v2": LATENT | SHARED | {"q_lora_rank": None, "n_shared_experts": 2},
    "deepseek_v3": LATENT | SHARED | {"q_lora_rank": 48},
    "glm4_moe": SHARED | {"head_dim": 32},
    "gpt2": {"n_embd": 128, "n_layer": 3, "n_head": 4, "num_key_value_heads": 4},
}
GIB = 2**30


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, **SIZES | MORE.get(kind, {}))
    return AutoModelForCausalLM.from_config(made, attn_implementation="sdpa")


def shapes_of(model: PreTrainedModel, folder: Path) -> Shapes:
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    named = {name: entry.shape for name, entry in tensors(folder, "model.path").items()}
    return Shapes(as_loaded(named, settings["model_type"]), settings)


def run_of(*words: str) -> Run:
    size = [f"training.batch_size={ROWS}", f"data.cutoff={LENGTH}", "model.precision=fp32"]
    return config.run(config.override([*size, *words]))


class Kept:
    """A tensor that autograd keeps, as long as the way back needs it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def kept(model: Any, *, half: bool = False, batch: dict[str, Any] | None = None) -> int:
    """Return the bytes of all storages that autograd keeps when the loss of one batch is known, weights apart."""
    ids = np.arange(LENGTH) % WORDS
    batch = batch or Flat()([{"input_ids": ids, "labels": ids}] * ROWS)
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    alive: WeakSet[Kept] = WeakSet()

    def hold(tensor: torch.Tensor) -> Kept:
        one = Kept(tensor)
        alive.add(one)
        return one

    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(hold, lambda one: one.tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        loss = model(**batch, use_cache=False).loss
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage() for one in alive}
    assert loss.requires_grad  # and holds all that till now
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


WAYS = {
    "lora": ["tuner.rank=8"], "dropout": ["tuner.dropout=0.1"], "dora": ["tuner.dora=true"],
    "some": ["tuner.targets=[q_proj,v_proj]"], "oft": ["tuner.kind=oft"], "full": ["tuner.kind=full"],
    "freeze": ["tuner.kind=freeze"], "expand": ["tuner.kind=expand", "tuner.blocks=1"],
    "last": ["tuner.rank=8", "tuner.layers=2"], "experts": ["tuner.rank=8", "tuner.experts=true"],
}  # fmt: skip
FAMILIES = ("qwen3", "gemma3_text", "phi3", "olmo2", "glm4", "mixtral", "qwen3_moe", "gpt2", "cohere", "granite",
            "qwen2_moe", "minicpm3")  # fmt: skip
CASES = [("llama", way, half) for way in WAYS if way != "experts" for half in (False, True)]
CASES += [(kind, "experts", False) for kind in ("mixtral", "qwen3_moe")]
CASES += [(kind, way, False) for kind in FAMILIES for way in ("lora", "full")]
CASES.append(("deepseek_v2", "full", False))  # peft 0.21 puts its adapters on other layers than those named: issue 3711


@pytest.mark.parametrize(("kind", "way", "half"), CASES)
def test_what_autograd_keeps_and_what_learns(kind: str, way: str, half: bool, tmp_path: Path) -> None:
    run = run_of(*WAYS[way], f"model.precision={'bf16' if half else 'fp32'}")
    model = model_of(kind)
    planned = plan(run, shapes_of(model, tmp_path), "cpu")
    if half:
        model = model.to(torch.bfloat16)
    assert isolate(model)
    tuned = run.tuner.attach(model, tmp_path)
    learning = [p for p in tuned.parameters() if p.requires_grad]
    assert planned.trainable == sum(p.numel() for p in learning)
    tokens = ROWS * LENGTH
    counted = kept(tuned, half=half) - 4 * WORDS * tokens  # the logarithms of the probabilities count as logits
    if half:  # autocast keeps its copies of the weights that learn, which count as weights
        counted -= 2 * sum(p.numel() for p in learning if p.ndim > 1)
    assert planned.logits == LOGIT_BYTES * WORDS * tokens
    assert planned.activations == pytest.approx(counted, rel=0.25 if half else 0.1)


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_autocast_makes_no_copy_of_a_table_that_is_only_read(tuner: str, tmp_path: Path) -> None:
    settings = SIZES | {"vocab_size": 20_000, "num_hidden_layers": 1}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings))
    run = run_of(f"tuner.kind={tuner}", "model.precision=bf16")
    planned = plan(run, shapes_of(model, tmp_path), "cpu")
    own = sum(weight.nbytes for weight in model.parameters())
    tuned, ids = run.tuner.attach(model, tmp_path), torch.arange(2)[None]
    counted = kept(tuned, half=True, batch={"input_ids": ids, "labels": ids})
    assert planned.weights - own == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize(("words", "part"), [
    (["optimizer.order=ascending"], 0), (["optimizer.order=fixed"], 2),
    (["optimizer.ends=true", "optimizer.order=fixed"], 3),
])  # fmt: skip
def test_what_autograd_keeps_where_blocks_take_turns(words: list[str], part: int, tmp_path: Path) -> None:
    run = run_of("tuner.kind=full", "optimizer.kind=badam", *words)
    model = model_of("llama")
    planned = plan(run, shapes_of(model, tmp_path), "cpu")
    assert isolate(model)
    tuned = run.tuner.attach(model, tmp_path)
    optimizer: Any = ByBlock([{"params": [*tuned.parameters()]}], parted(tuned, ends=part == 3), every=1,
                             order=words[-1].rpartition("=")[2], seed=0)  # fmt: skip
    assert optimizer.active == part
    counted = kept(tuned) - 4 * WORDS * ROWS * LENGTH
    assert planned.activations == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_attention_that_drops_keeps_its_scores(attention: str, tmp_path: Path) -> None:
    model = model_of("gpt2")
    shapes = shapes_of(model, tmp_path)
    model.set_attn_implementation("sdpa" if attention == "auto" else attention)
    length = 4 * LENGTH
    run = run_of("tuner.kind=full", f"data.cutoff={length}", f"model.attention={attention}")
    ids = torch.arange(length)[None].repeat(ROWS, 1)
    counted = kept(model, batch={"input_ids": ids, "labels": ids}) - 4 * WORDS * ROWS * length
    assert plan(run, shapes, "cpu").activations == pytest.approx(counted, rel=0.1)
    still = Shapes(shapes.tensors, {**shapes.config, "attn_pdrop": 0.0})
    assert plan(run, still, "cpu").activations < 0.8 * counted


def test_what_cannot_learn_has_no_plan(tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    for settings, code in (
        (["tuner.targets=[nosuch]"], "tuner.nothing"),
        (["tuner.layers=0-99"], "lora.no_layer"),
        (["tuner.kind=expand", "tuner.blocks=50"], "expand.blocks"),
    ):
        with pytest.raises(InputError) as caught:
            plan(run_of(*settings), shapes, "cpu")
        assert caught.value.code == code


def test_a_cpu_computes_fp16_as_fp32(tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    half, whole = (plan(run_of(f"model.precision={name}"), shapes, "cpu") for name in ("fp16", "fp32"))
    assert half == whole
    assert plan(run_of("model.precision=fp16"), shapes, "cuda").weights < whole.weights


def test_what_learns_is_told_by_kinds_of_modules(tmp_path: Path) -> None:
    model = model_of("llama")
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    planned = plan(run_of("tuner.rank=8", "tuner.targets=[q_proj,o_proj]"), shapes_of(model, tmp_path), "cpu")
    names = [f"model.layers.*.self_attn.{name}" for name in ("q_proj", "o_proj")]
    assert planned.modules == dict.fromkeys(names, layers * 8 * 2 * hidden)


def test_gradients_and_optimizer_states_are_counted_exactly(tmp_path: Path) -> None:
    run = run_of("tuner.kind=full")
    model = model_of("llama")
    planned = plan(run, shapes_of(model, tmp_path), "cpu")
    run.tuner.attach(model, tmp_path)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    assert planned.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert planned.optimizer == sum(state.nbytes for state in states)
    assert planned.weights == sum(p.nbytes for p in model.parameters())
    twice = plan(run_of("tuner.kind=full", "training.accumulation=2"), shapes_of(model, tmp_path), "cpu")
    assert twice.peak - planned.peak == planned.gradients  # held while the next batch is computed


@pytest.mark.parametrize("kind", ["bnb_4bit", "bnb_8bit"])
def test_bytes_of_quantized_weights(kind: str, tmp_path: Path) -> None:
    run = run_of(f"model.quantizer.kind={kind}")
    planned = plan(run, shapes_of(model_of("llama"), tmp_path), "cpu")
    settings = run.model.quantizer.loading(torch.float32, torch.device("cpu"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, device_map={"": "cpu"})
    held = 0
    for module in loaded.modules():
        for weight in module.parameters(recurse=False):
            held += weight.nbytes
            if state := getattr(weight, "quant_state", None):
                held += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
            elif type(module).__name__ == "Linear8bitLt":
                held += weight.SCB.nbytes
    assert planned.weights == pytest.approx(held, rel=0.02)


def test_what_learns_above_four_bits(tmp_path: Path) -> None:
    run = run_of("model.quantizer.kind=bnb_4bit", "tuner.rank=8", "tuner.loftq=true")
    planned = plan(run, shapes_of(model_of("llama"), tmp_path), "cpu")
    settings = run.model.quantizer.loading(torch.float32, torch.device("cpu"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, device_map={"": "cpu"})
    tuned = run.tuner.attach(loaded, tmp_path)
    assert planned.trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def test_above_eyes_that_stay_an_image_takes_no_more_than_its_tokens(tmp_path: Path) -> None:
    folder = make_llava(tmp_path / "llava")
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tuned = run_of().tuner.attach(model, tmp_path)
    texts = torch.arange(5, 5 + LENGTH).repeat(ROWS, 1)
    looks = texts.clone()
    looks[:, 10 : 10 + TOKENS] = model.config.image_token_id
    batches = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)} for ids in (texts, looks)]
    batches[1]["pixel_values"] = torch.rand(ROWS, 3, 32, 32)
    assert kept(tuned, batch=batches[0]) == kept(tuned, batch=batches[1])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "mixtral", "qwen3_moe", "qwen2_moe", "minicpm3",
                                  "deepseek_v2", "deepseek_v3", "glm4_moe"])  # fmt: skip
def test_shapes_from_the_config_alone(kind: str, tmp_path: Path) -> None:
    real = shapes_of(model_of(kind), tmp_path)
    made = of_config(real.config)
    assert made
    assert sum(map(math.prod, made.tensors.values())) == pytest.approx(
        sum(map(math.prod, real.tensors.values())), rel=0.005
    )
    for tuner in ("lora", "full"):
        ours, theirs = (plan(run_of(f"tuner.kind={tuner}"), shapes, "cpu") for shapes in (made, real))
        assert ours.trainable == pytest.approx(theirs.trainable, rel=0.005)
        assert ours.activations == pytest.approx(theirs.activations, rel=0.1)
        assert ours.peak == pytest.approx(theirs.peak, rel=0.005)


def test_sizes_that_are_published() -> None:
    """From the config.json of each, beside the billions of weights on its card; DeepSeek V3 without its second head."""
    latent = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    many: dict[str, dict[str, Any]] = {
        "deepseek_v3": latent | {
            "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
            "num_attention_heads": 128, "q_lora_rank": 1536, "n_routed_experts": 256, "n_shared_experts": 1,
            "first_k_dense_replace": 3, "vocab_size": 129280, "num_experts_per_tok": 8,
        },
        "deepseek_v2": latent | {
            "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
            "num_attention_heads": 16, "q_lora_rank": None, "n_routed_experts": 64, "n_shared_experts": 2,
            "first_k_dense_replace": 1, "vocab_size": 102400, "num_experts_per_tok": 6,
        },
        "qwen2_moe": {
            "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_experts": 60, "shared_expert_intermediate_size": 5632,
            "vocab_size": 151936, "num_experts_per_tok": 4,
        },
    }  # fmt: skip
    for kind, billions in {"deepseek_v3": 671.0, "deepseek_v2": 15.7, "qwen2_moe": 14.3}.items():
        made = of_config({"model_type": kind, "tie_word_embeddings": False} | many[kind])
        assert made and sum(map(math.prod, made.tensors.values())) / 1e9 == pytest.approx(billions, rel=0.005), kind


def test_no_shapes_where_the_config_tells_too_little() -> None:
    assert of_config({"model_type": "mamba", "hidden_size": 64}) is None


def test_checkpointing_keeps_a_block_and_the_stream(tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    whole, less = plan(run_of(), shapes, "cpu"), plan(run_of("training.gradient_checkpointing=true"), shapes, "cpu")
    ends = 2 * 4 * 128 * ROWS * LENGTH
    assert less.activations == pytest.approx((whole.activations - ends) / 3 + 3 * 4 * 128 * ROWS * LENGTH + ends)


def test_a_7b_model_beside_published_figures() -> None:
    """Llama-2-7B: 6.74 billion weights, 13.48 GB in bf16, about 3.9 GB in nf4 with embeddings in bf16."""
    shapes = of_config({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000, "hidden_act": "silu",
    })  # fmt: skip
    assert shapes
    lora = plan(run_of("model.precision=bf16", "tuner.rank=128"), shapes, "cuda")
    own = lora.parameters - lora.trainable
    assert own == 6_738_415_616 and lora.weights == 2 * own
    assert lora.trainable == 319_815_680  # as peft counts it for rank 128 on all linear layers
    four = plan(run_of("model.precision=bf16", "model.quantizer.kind=bnb_4bit"), shapes, "cuda")
    assert 3.7e9 < four.weights < 4.0e9
    full = plan(run_of("model.precision=bf16", "tuner.kind=full"), shapes, "cuda")
    assert full.weights + full.gradients + full.optimizer == 18 * full.parameters - 2 * 32000 * 4096
    # 16, and bf16 copies that autocast makes of what is multiplied


def test_changes_that_make_a_run_fit(tmp_path: Path) -> None:
    shapes = of_config({
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    })  # fmt: skip
    assert shapes
    run = run_of("training.batch_size=8", "training.accumulation=2", "data.cutoff=1024", "model.precision=bf16")
    for free, first in ((14, ["training.batch_size", "training.accumulation"]), (200, [])):
        found = foresee(run, shapes, 0, Room("cuda", free * GIB, free * GIB))
        assert found.verdict == ("fits" if free == 200 else "too_large")
        assert [list(fix.patch) for fix in found.fixes[:1]] == ([first] if first else [])
        for fix in found.fixes:
            changed = config.run(run.model_dump(), config.nest(fix.patch))
            assert changed.training.batch_size * changed.training.accumulation == 16
            assert plan(changed, shapes, "cuda").peak == fix.plan.peak <= TIGHT * free * GIB
    full = config.run(run.model_dump(), {"tuner": {"kind": "full"}})
    small = foresee(full, shapes, 0, Room("cuda", 8 * GIB, 8 * GIB))
    assert small.fixes and small.fixes[0].patch["tuner"] == {"kind": "lora"}
    assert foresee(full, shapes, 0, Room("cuda", GIB, GIB)).fixes == ()


def test_forecast_of_a_folder_and_of_a_model_that_is_not_here(tiny_model: Path, tmp_path: Path) -> None:
    run = config.run({"model": {"path": str(tiny_model)}, "hardware": {"device": "cpu"}})
    found = forecast(run, tmp_path)
    assert found and found.verdict == "fits" and found.room.device == "cpu" and not found.fixes
    assert forecast(config.run({"model": {"path": "nobody/nothing"}}), tmp_path) is None


def test_names_that_only_the_model_in_memory_has_give_no_plan(tmp_path: Path) -> None:
    model = model_of("gpt2")
    shapes_of(model, tmp_path)
    run = run_of(f"model.path={tmp_path}", r"tuner.targets=['transformer\.h\..*c_attn']")
    assert forecast(run, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name.replace("transformer.", "trunk."): weight for name, weight in load_file(file).items()}, file)
    assert forecast(run, tmp_path) is None and unforeseen(run, tmp_path).code == "memory.names"
    assert unforeseen(config.run({"model": {"path": "nobody/nothing"}}), tmp_path).code == "memory.unknown"


@pytest.mark.parametrize("settings", [
    {"r": 3}, {"r": 5, "target_modules": ["q_proj", "layers.1.mlp.up_proj"], "use_dora": True},
    {"r": 2, "target_modules": r".*\.0\..*_proj", "modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_an_adapter_that_is_trained_on(tiny_model: Path, workspace: Path, settings: dict[str, Any]) -> None:
    """It has the rank and targets that it was made with, whatever the settings say of a new one."""
    make_adapter(workspace / "runs" / "first" / "adapter", tiny_model, **settings)
    given = ["tuner.rank=64", "tuner.start=[first]", "tuner.go_on=true", f"model.path={tiny_model}"]
    run = run_of(*given, "hardware.device=cpu")
    found = forecast(run, workspace)
    (workspace / "runs" / "new").mkdir()
    tuned = run.tuner.attach(AutoModelForCausalLM.from_pretrained(tiny_model), workspace / "runs" / "new")
    assert found and found.plan.trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    gone = forecast(run_of(*given, "tuner.start=[gone]"), workspace)
    assert gone and gone.plan.trainable > found.plan.trainable


def test_a_gpu_is_asked_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '5, 1024, 24576, 40'\necho '90, 20480, 24576, 70'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    _smi.cache_clear()
    try:
        assert len(gpus()) == 2
        assert room(Hardware()) == Room("cuda", 23552 << 20, 24576 << 20, bf16=True)
        assert room(Hardware(device="cpu")).device == "cpu"
        smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 9\n")
        assert gpus() == [] and room(Hardware()).device == "cpu"
    finally:
        _smi.cache_clear()


def test_odd_configs_give_no_plan_and_take_no_time(tmp_path: Path) -> None:
    usual = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100,
             "intermediate_size": 128, "num_attention_heads": 4}  # fmt: skip
    assert of_config(usual)
    odd: list[dict[str, Any]] = [
        {"num_hidden_layers": 200_000}, {"head_dim": "abc"}, {"num_key_value_heads": [1, 2]}, {"hidden_size": -64},
        {"hidden_size": 1e300}, {"num_attention_heads": 0}, {"vocab_size": 10**12}, {"model_type": "phi"},
    ]  # fmt: skip
    for change in odd:
        assert of_config(usual | change) is None, change
    for name in ("meta-llama/Llama-", "a/b--c", "org/x..y"):  # ids that are being typed
        assert forecast(config.run({"model": {"path": name}}), tmp_path) is None


def test_weights_that_arrive_later_are_seen(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "late"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    run = config.run({"model": {"path": str(folder)}, "hardware": {"device": "cpu"}})
    before = forecast(run, tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert before and forecast(run, tmp_path) is None
    (folder / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes())
    after = forecast(run, tmp_path)
    assert after and after.plan.parameters == before.plan.parameters
