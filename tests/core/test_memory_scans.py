"""The memory planner where states go from token to token: what autograd keeps of scans written out in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.models.inspect import of_text
from core.models.memory import plan
from core.models.shapes import Shapes
from tests.core.test_memory import ROWS, kept, run_of, shapes_of
from tests.core.test_memory_tables import highest
from tests.core.tiny import VOCABULARY, tiny_model

MAMBAS = ("mamba", "falcon_mamba", "jamba", "zamba")
CHUNKED = ("mamba2", "bamba", "zamba2", "falcon_h1", "granitemoehybrid", "nemotron_h")
OTHERS = ("recurrent_gemma", "minimax", "rwkv")
RULES = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid", "kimi_linear")
CASES = [(kind, tuner, 64, False) for kind in (*MAMBAS, *CHUNKED, *RULES, *OTHERS) for tuner in ("lora", "full")]
CASES += [(kind, "lora", length, half) for kind in ("jamba", "falcon_h1", "qwen3_5", "kimi_linear", *OTHERS)
          for length, half in ((100, False), (64, True))]  # fmt: skip


def of_model(model: Any, folder: Path) -> Shapes:
    found = shapes_of(model, folder)
    return Shapes(found.tensors, of_text(dict(found.config)))


def batch_of(length: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(ROWS * length).reshape(ROWS, length) % 200
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(("kind", "tuner", "length", "half"), CASES)
def test_what_autograd_keeps_of_a_scan(kind: str, tuner: str, length: int, half: bool, tmp_path: Path) -> None:
    precision = f"model.precision={'bf16' if half else 'fp32'}"
    run = run_of(f"tuner.kind={tuner}", f"data.cutoff={length}", precision)
    model: Any = tiny_model(kind)
    shapes = of_model(model, tmp_path)
    planned = plan(run, shapes, "cpu")
    tuned = run.tuner.attach(model.to(torch.bfloat16) if half else model, tmp_path)
    logits = VOCABULARY * ROWS * length
    counted = kept(tuned, half=half, batch=batch_of(length)) - 4 * logits
    if shapes.config.get("logits_soft_cap"):  # which keeps them once more
        counted -= (2 if half else 4) * logits
    if half:  # autocast keeps its copies of the weights that learn, which count as weights
        counted -= 2 * sum(p.numel() for p in tuned.parameters() if p.requires_grad and p.ndim > 1)
    loose = 0.12 if kind == "recurrent_gemma" else 0.1  # its attention keeps the mask, and copies keys for its heads
    assert planned.activations == pytest.approx(counted, rel=loose)


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1", "qwen3_5", "kimi_linear"])
def test_gradients_of_a_scan_come_on_top_where_one_block_is_kept(kind: str, tmp_path: Path) -> None:
    run, model = run_of("training.gradient_checkpointing=true"), tiny_model(kind)
    planned = plan(run, of_model(model, tmp_path), "cpu")
    tuned: Any = run.tuner.attach(model, tmp_path)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    tuned.train()
    counted = highest(lambda: tuned(**batch_of(64), use_cache=False).loss.backward())
    assert planned.peak - planned.lasting - planned.heap == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize(("kind", "package"), [("falcon_h1", "mamba_ssm"), ("jamba", "mamba_ssm"), ("qwen3_5", "fla")])
def test_kernels_for_gpus_keep_nothing_of_a_scan(
    kind: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, run = of_model(tiny_model(kind), tmp_path), run_of()
    written_out = plan(run, shapes, "cuda").activations
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert plan(run, shapes, "cuda").activations < 0.8 * written_out
    assert plan(run, shapes, "cpu").activations > 0.9 * written_out


@pytest.mark.parametrize("count", [1, 2, 3])
def test_new_blocks_of_zamba_have_what_the_old_ones_share(count: int, tmp_path: Path) -> None:
    run, model = run_of("tuner.kind=expand", f"tuner.blocks={count}"), tiny_model("zamba")
    planned = plan(run, of_model(model, tmp_path), "cpu")
    tuned = run.tuner.attach(model, tmp_path)
    assert planned.trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert planned.weights == sum(p.nbytes for p in tuned.parameters())
    counted = kept(tuned, batch=batch_of(64)) - 4 * VOCABULARY * ROWS * 64
    assert planned.activations == pytest.approx(counted, rel=0.1)
