"""Each optimizer beside the formula of its paper, and the memory that it takes beside what the planner says."""

from __future__ import annotations

import copy
import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, get_scheduler

from core import config
from core.config import Run
from core.errors import InputError
from core.forecast import foresee
from core.models.decoder import of_config
from core.models.headers import tensors
from core.models.memory import plan
from core.models.room import Room
from core.models.shapes import Shapes
from core.optimizers.steps.badam import ByBlock
from core.optimizers.steps.single import Single
from core.preflight import check
from core.training.objective import NextToken
from core.training.ordered import Ordered

IDS_B_T = torch.arange(24).reshape(2, 12)
RATE = 0.01
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "vocab_size": 32000, "model_type": "llama"}  # fmt: skip
HERE = find_spec("schedulefree") is not None
"""Part of what is installed with Tuneboard."""
free = pytest.mark.skipif(not HERE, reason="schedulefree is not installed")


def model_of(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": False}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes | more))


def run_of(*words: str) -> Run:
    steady = ["training.schedule=constant", "training.warmup=0", f"optimizer.learning_rate={RATE}"]
    return config.run(config.override(["model.precision=fp32", "training.clip=0", *steady, *words]))


def made(run: Run, model: Any, folder: Path) -> Ordered:
    """Return a trainer with its optimizer; the model has its tuner."""
    given = TrainingArguments(output_dir=str(folder), use_cpu=True, **run.optimizer.arguments())
    trainer = Ordered(model=model, args=given, pace=run.tuner.pace, objective=NextToken())
    trainer.build = run.optimizer.build
    trainer.create_optimizer()
    return trainer


def step(model: Any, optimizer: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Take a step; return the gradients that it saw, by name: those that are thrown away, too."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [p.register_hook(lambda g, name=name: seen.__setitem__(name, g.clone()))
             for name, p in model.named_parameters() if p.requires_grad]  # fmt: skip
    ids = (IDS_B_T * (seed + 1)) % 300
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    for hook in hooks:
        hook.remove()
    return seen


def whole(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def begun(tmp_path: Path, *words: str, **more: Any) -> tuple[Any, Any, Run]:
    """Return (model, optimizer, run) of a full tuning."""
    run, model = run_of("tuner=full", *words), model_of(**more)
    run.tuner.attach(model, tmp_path)
    return model, made(run, model, tmp_path).optimizer, run


KINDS = {
    "fused": [], "8bit": ["optimizer.variant=8bit"], "adafactor": ["optimizer=adafactor"],
    "galore": ["optimizer=galore", "optimizer.rank=8"],
    "galore full": ["optimizer=galore", "optimizer.rank=8", "optimizer.projection=full"],
    "galore reverse": ["optimizer=galore", "optimizer.rank=100", "optimizer.projection=reverse_std"],
    "galore layers": ["optimizer=galore", "optimizer.rank=8", "optimizer.layerwise=true"],
    "apollo": ["optimizer=apollo", "optimizer.rank=8"],
    "apollo svd": ["optimizer=apollo", "optimizer.rank=8", "optimizer.projection=svd"],
    "badam": ["optimizer=badam"], "badam ends": ["optimizer=badam", "optimizer.ends=true", "optimizer.order=ascending"],
    "ratio": ["optimizer=badam", "optimizer.mode=ratio"], "muon": ["optimizer=muon"],
    "scatter": ["optimizer=badam", "optimizer.mode=ratio", "optimizer.pick=scatter"],
    "adam_mini": ["optimizer=adam_mini"], "lomo": ["optimizer=lomo"],
    "free": ["optimizer=schedule_free"],
}  # fmt: skip


def held(optimizer: Any) -> int:
    """Return the bytes of all tensors that an optimizer keeps, each once; single numbers don't count."""
    kept = [value for state in optimizer.state.values() for value in state.values()]
    kept += [value for value in vars(optimizer).get("chosen", {}).values()]
    found = {value.data_ptr(): value.nbytes for value in kept if isinstance(value, torch.Tensor) and value.ndim}
    return sum(found.values())


@pytest.mark.parametrize("precision", ["fp32", "pure_bf16"])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=free) if kind == "free" else kind for kind in KINDS])
def test_states_are_counted_exactly(kind: str, precision: str, tmp_path: Path) -> None:
    if kind == "8bit":
        import bitsandbytes

        bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()  # which remembers models of other tests
    run, model = run_of("tuner=full", f"model.precision={precision}", *KINDS[kind]), model_of()
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    shapes = Shapes({name: entry.shape for name, entry in tensors(tmp_path, "model.path").items()}, settings)
    run.tuner.attach(model, tmp_path)
    if precision == "pure_bf16":
        model.bfloat16()
    optimizer: Any = made(run, model, tmp_path).optimizer
    if kind == "free":
        optimizer.train()
    width = 2 if precision == "pure_bf16" else 4
    learns = run.tuner.learns(shapes)
    model(IDS_B_T, labels=IDS_B_T).loss.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    claimed = run.optimizer.gradient_bytes(learns, shapes, width)
    if kind in ("lomo", "galore layers"):
        assert gradients == 0 and claimed == width * 300 * 64  # each was there for a moment
    elif kind in ("ratio", "scatter"):
        assert gradients == 0 and claimed == width * 160 * 64 + sum(one.nbytes for one in optimizer.given.values())
    else:
        assert gradients == claimed
    optimizer.step()
    assert held(optimizer) == run.optimizer.state_bytes(learns, shapes, width)


def test_the_plan_of_a_run_follows_its_optimizer(tmp_path: Path) -> None:
    """Of 7 billion weights in 16 bits: BAdam holds one of 32 blocks, in fp32 with its state; LOMO one weight."""
    shapes = of_config(LLAMA_7B)
    assert shapes
    block, table = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096, 32000 * 4096
    base = ["tuner=full", "model.precision=pure_bf16", "data.cutoff=512"]
    plans = {kind: plan(run_of(*base, *KINDS[kind]), shapes, "cuda") for kind in ("fused", "badam", "lomo")}
    whole_model = 32 * block + 2 * table + 4096
    assert plans["fused"].optimizer == 2 * 2 * whole_model and plans["fused"].gradients == 2 * whole_model
    assert plans["badam"].optimizer == 3 * 4 * block and plans["badam"].gradients == 2 * block
    assert plans["lomo"].optimizer == 0 and plans["lomo"].gradients == 2 * table
    assert plans["lomo"].weights == plans["badam"].weights == 2 * whole_model


def test_what_is_proposed_goes_with_the_optimizer() -> None:
    """Smaller batches without accumulation, which LOMO can't have; an adapter with an optimizer that moves adapters."""
    shapes = of_config(LLAMA_7B)
    assert shapes
    run = run_of("tuner=full", *KINDS["lomo"], "model.precision=pure_bf16", "data.cutoff=1024")
    fixes = [
        fix.patch for free in (24, 14) for fix in foresee(run, shapes, 0, Room("cuda", free << 30, 80 << 30)).fixes
    ]
    assert any("training.batch_size" in patch and "training.accumulation" not in patch for patch in fixes)
    assert all(patch["optimizer"] == {"kind": "adamw"} for patch in fixes if "tuner" in patch)
    assert any("tuner" in patch for patch in fixes)


def test_galore_keeps_less_than_adamw_by_the_predicted_factor(tmp_path: Path) -> None:
    """Of a matrix (m, n): rank * (longer * 2 + shorter) instead of 2 * m * n."""
    sizes = {}
    for kind in ("fused", "galore", "apollo"):
        model, optimizer, _ = begun(tmp_path, *KINDS[kind])
        step(model, optimizer)
        weight = model.model.layers[0].mlp.up_proj.weight  # 160 x 64
        states = optimizer.state[weight].items()
        sizes[kind] = sum(one.numel() for key, one in states if key != "step" and one.ndim) if kind == "fused" else sum(
            one.numel() for one in optimizer.state[weight].values() if isinstance(one, torch.Tensor) and one.ndim
        )  # fmt: skip
    assert sizes == {"fused": 2 * 160 * 64, "galore": 8 * (2 * 160 + 64), "apollo": 8 * 2 * 160}


@pytest.mark.parametrize(("module", "tall"), [("mlp.up_proj", True), ("mlp.down_proj", False)])
def test_galore_is_adam_in_the_largest_directions(module: str, tall: bool, tmp_path: Path) -> None:
    """Two steps by the paper's formulas, the directions found in the first."""
    model, optimizer, _ = begun(tmp_path, *KINDS["galore"], "optimizer.scale=0.5", "optimizer.weight_decay=0.1")
    name = f"model.layers.1.{module}.weight"
    expected = whole(model)[name].double()
    left, _, right = None, None, None
    mean = square = torch.zeros(())
    for number in (1, 2):
        gradient = step(model, optimizer, seed=number)[name].double()
        if number == 1:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            left, right = left[:, :8], right[:8]
        small = gradient @ right.T if tall else left.T @ gradient
        mean, square = 0.9 * mean + 0.1 * small, 0.999 * square + 0.001 * small**2
        direction = mean / (1 - 0.9**number) / ((square / (1 - 0.999**number)).sqrt() + 1e-8)
        moved = direction @ right if tall else left @ direction
        expected = expected * (1 - RATE * 0.1) - RATE * 0.5 * moved
    assert torch.allclose(whole(model)[name].double(), expected, atol=2e-5)


def test_layer_by_layer_moves_as_a_whole_step_does(tmp_path: Path) -> None:
    for kind in ("galore", "apollo"):
        ends = []
        for layerwise in ("false", "true"):
            words = [*KINDS[kind], f"optimizer.layerwise={layerwise}", "optimizer.update_every=2"]
            model, optimizer, _ = begun(tmp_path, *words)
            for seed in range(3):
                step(model, optimizer, seed)
            ends.append(whole(model))
            assert bool(optimizer.norm() > 0) is (layerwise == "true")
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_apollo_scales_the_gradient(tmp_path: Path) -> None:
    """The first step of Adam is as long in each number: a channel of the image gets the length √rank."""
    for scaling, projection, scale in (("channel", "svd", 4), ("tensor", "svd", 1), ("channel", "random", 1)):
        words = ["optimizer=apollo", "optimizer.rank=16", f"optimizer.scaling={scaling}", f"optimizer.scale={scale}"]
        model, optimizer, _ = begun(tmp_path, *words, f"optimizer.projection={projection}")
        name = "model.layers.0.mlp.up_proj.weight"
        before = whole(model)[name]
        gradient = step(model, optimizer)[name]
        moved = (before - whole(model)[name]) / RATE
        assert torch.nn.functional.cosine_similarity(moved, gradient, dim=1).min() > 0.999
        image = gradient @ torch.linalg.svd(gradient, full_matrices=False)[2][:16].T
        if projection == "svd" and scaling == "channel":
            wanted = gradient.norm(dim=1) * 16**0.5 / image.norm(dim=1) * scale**0.5
            assert torch.allclose(moved.norm(dim=1), wanted, rtol=1e-2)
        elif projection == "svd":
            wanted = gradient.norm() * (160 * 16) ** 0.5 / image.norm()
            assert moved.norm().item() == pytest.approx(wanted.item(), rel=1e-2)
        else:  # by chance the image is about as long
            assert (moved.norm(dim=1) / 4).mean().item() == pytest.approx(1, rel=0.1)


def test_apollo_lets_no_step_grow_much(tmp_path: Path) -> None:
    model, optimizer, _ = begun(tmp_path, *KINDS["apollo"])
    weight, lengths = model.model.layers[0].mlp.up_proj.weight, []
    torch.manual_seed(0)
    for size in (1e-3, 1.0, 10.0):
        before = weight.detach().clone()
        weight.grad = size * torch.randn_like(weight)
        optimizer.step()
        lengths.append((weight - before).norm().item())
    assert lengths[1] <= 1.0101 * lengths[0] and lengths[2] <= 1.0101 * lengths[1]


def test_muon_moves_all_directions_alike(tmp_path: Path) -> None:
    """Singular values near one, times what makes steps as long as AdamW's; AdamW for embedding, head and norms."""
    model, optimizer, _ = begun(tmp_path, *KINDS["muon"])
    before = whole(model)
    gradients = step(model, optimizer)
    for name, weight in model.named_parameters():
        moved = (before[name] - weight.detach()) / RATE
        if ".layers." in name and weight.ndim == 2:
            values = torch.linalg.svdvals(moved) / (0.2 * math.sqrt(max(weight.shape)))
            rank = torch.linalg.matrix_rank(gradients[name])
            assert values[: rank // 2].min() > 0.5 and values.max() < 1.3, name
        else:
            seen = gradients[name].abs() > 1e-5
            assert torch.allclose(moved[seen], gradients[name][seen].sign(), atol=5e-3), name


def test_eight_bits_begin_near_adamw(tmp_path: Path) -> None:
    moved = []
    for kind in ("fused", "8bit"):
        model, optimizer, _ = begun(tmp_path, *KINDS[kind])
        before = whole(model)
        for seed in range(2):
            step(model, optimizer, seed)
        moved.append(torch.cat([(p.detach() - before[n]).flatten() for n, p in model.named_parameters()]))
    kinds = {state["state1"].dtype for state in optimizer.state.values()}
    assert kinds == {torch.uint8, torch.float32}
    assert not torch.equal(*moved) and (moved[0] - moved[1]).norm() < 0.05 * moved[0].norm()


def test_adafactor_is_one_row_and_one_column(tmp_path: Path) -> None:
    model, optimizer, _ = begun(tmp_path, *KINDS["adafactor"])
    name = "model.layers.0.mlp.up_proj.weight"
    before = whole(model)[name]
    gradient = step(model, optimizer)[name].double()
    square = gradient**2 + 1e-30
    whole_mean = square.mean(1, keepdim=True) @ square.mean(0, keepdim=True) / square.mean()
    update = gradient / whole_mean.sqrt()
    update = update / max(1.0, update.square().mean().sqrt().item())
    assert torch.allclose((before - whole(model)[name]).double(), RATE * update, atol=1e-5)


def test_adam_mini_has_one_rate_for_each_head(tmp_path: Path) -> None:
    model, optimizer, _ = begun(tmp_path, *KINDS["adam_mini"])
    before = whole(model)
    gradients = step(model, optimizer)
    counts = {"self_attn.q_proj": 4, "self_attn.k_proj": 2, "mlp.down_proj": 64, "self_attn.v_proj": 32}
    for module, parts in counts.items():
        name = f"model.layers.1.{module}.weight"
        gradient = gradients[name].reshape(parts, -1)
        wanted = gradient / (gradient.square().mean(1, keepdim=True).sqrt() + 1e-8)
        moved = (before[name] - whole(model)[name]).reshape(parts, -1) / RATE
        assert torch.allclose(moved, wanted, atol=1e-3, rtol=1e-3), name
        assert optimizer.state[dict(model.named_parameters())[name]]["exp_avg_sq"].numel() == parts


def test_adam_mini_refuses_what_has_no_heads(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(InputError) as caught:
        made(run_of("tuner=full", "optimizer=adam_mini"), model, tmp_path)
    assert (caught.value.code, caught.value.place) == ("adam_mini.heads", "optimizer")


def test_lomo_is_gradient_descent_without_gradients(tmp_path: Path) -> None:
    model, optimizer, _ = begun(tmp_path, "optimizer=lomo")
    other = model_of()
    theirs = torch.optim.SGD(other.parameters(), lr=RATE)
    for seed in range(2):
        step(model, optimizer, seed)
        step(other, theirs, seed)
    for ours, given in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, given, atol=1e-6)
    assert not optimizer.state


@pytest.mark.parametrize(("order", "turns"), [
    ("descending", [2, 1, 0, 2]), ("ascending", [0, 1, 2, 0]), ("fixed", [2, 2, 2, 2]), ("random", None),
])  # fmt: skip
def test_badam_moves_one_block_at_a_time(order: str, turns: list[int] | None, tmp_path: Path) -> None:
    model, optimizer, _ = begun(tmp_path, "optimizer=badam", "optimizer.switch_every=2", f"optimizer.order={order}")
    seen = []
    for _ in range(4):
        moved: set[str] = set()
        for seed in range(2):
            before = whole(model)
            step(model, optimizer, seed)
            moved |= {name for name, weight in whole(model).items() if not torch.equal(weight, before[name])}
        (number,) = {int(name.split(".")[2]) for name in moved}
        assert moved == {name for name in before if name.startswith(f"model.layers.{number}.")}
        seen.append(number)
    if turns is None:
        assert sorted(seen[:3]) == [0, 1, 2]
    else:
        assert seen == turns


@pytest.mark.parametrize("pick", ["adjacent", "scatter"])
def test_badam_moves_a_share_and_all_in_the_end(pick: str, tmp_path: Path) -> None:
    words = ["optimizer=badam", "optimizer.mode=ratio", "optimizer.ratio=0.3", "optimizer.switch_every=1"]
    model, optimizer, _ = begun(tmp_path, *words, f"optimizer.pick={pick}")
    name = "model.layers.0.mlp.up_proj.weight"
    first, size = whole(model), 160 * 64
    for turn in range(4):
        before = whole(model)
        step(model, optimizer, turn)
        now = whole(model)
        assert (now[name] != before[name]).sum() <= math.ceil(0.3 * size)
        assert turn or (now[name] != before[name]).sum() > 0.29 * size
        assert torch.equal(now["lm_head.weight"], first["lm_head.weight"])
    assert (now[name] != first[name]).float().mean() > 0.99


@free
def test_schedule_free_evaluates_the_mean_and_comes_back(tmp_path: Path) -> None:
    """Beside the reference of the same package, which holds the three sequences apart."""
    from schedulefree import AdamWScheduleFreeReference

    model, optimizer, _ = begun(tmp_path, "optimizer=schedule_free")
    other = copy.deepcopy(model)
    theirs = AdamWScheduleFreeReference(other.parameters(), lr=RATE)
    optimizer.train()
    theirs.train()
    for seed in range(5):
        step(model, optimizer, seed)
        step(other, theirs, seed)
    training = whole(model)
    optimizer.eval()
    theirs.eval()
    for ours, given in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, given, atol=1e-4)
    assert not torch.equal(model.lm_head.weight, training["lm_head.weight"])
    optimizer.train()
    assert all(torch.equal(weight, training[name]) for name, weight in model.named_parameters())


def test_what_moves_weights_before_processes_put_their_gradients_together_wants_to_be_alone(tmp_path: Path) -> None:
    for kind in KINDS.keys() - ({"free"} if not HERE else set()):
        _, optimizer, run = begun(tmp_path, *KINDS[kind])
        apart = isinstance(optimizer, ByBlock) or (isinstance(optimizer, Single) and optimizer.at_once)
        assert ("alone" in run.optimizer.wants) == apart, kind


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup", "polynomial"])
def test_every_schedule_goes_with_every_optimizer(schedule: str, tmp_path: Path) -> None:
    """Beside the figures that transformers has for AdamW, of weights at two paces."""
    for kind in KINDS.keys() - {"free"}:
        run, model = run_of("tuner=full", *KINDS[kind]), model_of()
        given = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, warmup_steps=2, lr_scheduler_type=schedule,
                                  **run.optimizer.arguments())  # fmt: skip
        trainer = Ordered(model=model, args=given, pace=lambda name: 1 + 3.0 * ("q_proj" in name),
                          objective=NextToken())  # fmt: skip
        trainer.build = run.optimizer.build
        trainer.create_optimizer_and_scheduler(6)
        theirs = get_scheduler(schedule, torch.optim.AdamW(model.parameters(), lr=RATE), 2, 6)
        for _ in range(7):
            (wanted,), rates = theirs.get_last_lr(), set(trainer.lr_scheduler.get_last_lr())
            assert sorted(rates) == pytest.approx(sorted({wanted, 4 * wanted})), kind
            for moved in (theirs, trainer.lr_scheduler):
                moved.optimizer.step()
                moved.step()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(InputError) as caught:
        check(run_of("optimizer=schedule_free"), tmp_path)
    assert (caught.value.code, caught.value.place) == ("package.missing", "optimizer")
    assert caught.value.params == {"package": "schedulefree"}


@pytest.mark.parametrize("variant", ["paged_8bit", "paged_32bit"])
def test_pages_need_a_gpu(variant: str, tmp_path: Path) -> None:
    run = run_of(f"optimizer.variant={variant}", "hardware.device=cpu")
    with pytest.raises(InputError) as caught:
        check(run, tmp_path)
    assert (caught.value.code, caught.value.place) == ("optimizer.paged", "optimizer.adamw.variant")
    run.optimizer.check("cuda")
