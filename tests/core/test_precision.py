"""Number formats in training: pure bf16, norms and logits in fp32, activations that wait in the machine's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.errors import InputError
from core.models import device, liger, precision
from core.models.device import compute_dtype, training_dtype
from core.sections import Model
from core.tuners.full import Full
from core.tuners.lora import Lora
from tests.core import tiny
from tests.core.helpers import of_type, train, weights

IDS_B_T = torch.arange(24).reshape(2, 12)


def in_bf16(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def test_a_cpu_trains_in_fp32_where_fp16_is_asked_for_and_says_so(make_run: Callable[..., Path]) -> None:
    half, whole = make_run("half", "model.precision=fp16"), make_run("whole", "model.precision=fp32")
    for folder in (half, whole):
        train(folder)
    learned, expected = weights(half / "adapter"), weights(whole / "adapter")
    assert all(torch.equal(learned[name], tensor) for name, tensor in expected.items())
    told = [[event["code"] for event in of_type(folder, "warning")] for folder in (half, whole)]
    assert ["precision.fp16_cpu" in codes for codes in told] == [True, False]


def test_everything_is_bf16_in_a_pure_run(make_run: Callable[..., Path]) -> None:
    losses = {}
    for name, settings in {
        "mixed": ("model.precision=bf16",),
        "pure": ("model.precision=pure_bf16",),
        "full": ("model.precision=pure_bf16", "tuner.kind=full", "optimizer.learning_rate=0.003"),
        "norms": ("model.precision=pure_bf16", "training.upcast_norms=true", "training.upcast_logits=true"),
    }.items():
        folder = make_run(name, *settings)
        train(folder)
        losses[name] = [event["loss"] for event in of_type(folder, "step")]
        kept = weights(folder / ("model" if name == "full" else "adapter"))
        expected = torch.float32 if name == "mixed" else torch.bfloat16
        assert {tensor.dtype for tensor in kept.values()} == {expected}, name
        assert losses[name][-1] < 0.95 * losses[name][0]
    assert losses["pure"][0] == pytest.approx(losses["mixed"][0], rel=0.01)
    assert losses["norms"][-1] == pytest.approx(losses["mixed"][-1], rel=0.05)


def test_norms_are_held_and_computed_in_fp32(tiny_model: Path) -> None:
    model = in_bf16(tiny_model)
    norm = model.model.layers[0].input_layernorm
    torch.nn.init.normal_(norm.weight, mean=1.0)
    precision.upcast_norms(model)
    changed = [name for name, p in model.named_parameters() if p.dtype is torch.float32]
    assert len(changed) == 5 and all("norm" in name for name in changed)
    hidden_T_H = torch.randn(7, 64).bfloat16()
    exact = hidden_T_H.double()
    exact = exact / (exact.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()
    assert torch.equal(norm(hidden_T_H), exact.to(torch.bfloat16))
    Full().attach(model, tiny_model)
    precision.narrow(model)
    precision.upcast_norms(model)
    model(input_ids=IDS_B_T, labels=IDS_B_T).loss.backward()
    assert {p.grad.dtype for name, p in model.named_parameters() if "norm" in name} == {torch.float32}
    assert {p.grad.dtype for name, p in model.named_parameters() if "norm" not in name} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["gpt_neox", "cohere2", "gemma3_text", "qwen3_next", "mamba2", "jamba", "mpt"])
def test_norms_of_other_families_go_up_too(kind: str) -> None:
    model: Any = tiny.tiny_model(kind).to(torch.bfloat16)
    before = model(**tiny.tiny_batch()).loss
    precision.upcast_norms(model)
    loss = model(**tiny.tiny_batch()).loss
    loss.backward()
    assert loss.item() == pytest.approx(before.item(), rel=0.02)
    assert any(p.dtype is torch.float32 for p in model.parameters())


@pytest.mark.parametrize("wrapped", [False, True])
def test_logits_are_fp32(tiny_model: Path, tmp_path: Path, wrapped: bool) -> None:
    model = in_bf16(tiny_model)
    if wrapped:
        model = Lora(rank=2).attach(model, tmp_path)
        precision.narrow(model)
    plain = model(input_ids=IDS_B_T).logits
    precision.upcast_logits(model)
    logits = model(input_ids=IDS_B_T).logits
    assert plain.dtype is torch.bfloat16 and logits.dtype is torch.float32 and torch.equal(logits, plain.float())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_activations_that_waited_are_the_same(tiny_model: Path, checkpointing: bool) -> None:
    gradients, moved = [], []
    for offload in (False, True):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attention_dropout=0.2)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        hooks = precision.offloading(model)
        pack, unpack = hooks.pack_hook, hooks.unpack_hook

        def counted(tensor: torch.Tensor, pack: Any = pack) -> Any:
            kept = pack(tensor)
            moved.append((tensor, kept))
            return kept

        torch.manual_seed(1)
        if offload:
            with torch.autograd.graph.saved_tensors_hooks(counted, unpack):
                loss = model(input_ids=IDS_B_T, labels=IDS_B_T).loss
        else:
            loss = model(input_ids=IDS_B_T, labels=IDS_B_T).loss
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    copied = [tensor for tensor, kept in moved if not isinstance(kept, torch.Tensor)]
    stayed = [tensor for tensor, kept in moved if isinstance(kept, torch.Tensor)]
    own = {p.data_ptr() for p in model.parameters()}
    assert copied and not [tensor for tensor in copied if tensor.data_ptr() in own]
    assert all(tensor.data_ptr() in own or tensor.nbytes < 1024 or tensor.data_ptr() in
               {b.data_ptr() for b in model.buffers()} for tensor in stayed)  # fmt: skip
    assert all(kept[1].data_ptr() != tensor.data_ptr() for tensor, kept in moved if not isinstance(kept, torch.Tensor))


def test_a_run_on_a_cpu_says_that_nothing_is_to_be_moved(make_run: Callable[..., Path]) -> None:
    folder = make_run("cpu", "training.offload_activations=true", "training.max_steps=1")
    train(folder)
    assert "precision.nothing_to_offload" in [event["code"] for event in of_type(folder, "warning")]


def test_auto_is_what_the_processor_multiplies_itself(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, flags = torch.device("cpu"), Path("/proc/cpuinfo").read_text().split()
    native = "avx512_bf16" in flags or "amx_tile" in flags
    large = 10**8
    assert training_dtype(Model(), cpu, large) is (torch.bfloat16 if native else torch.float32)
    assert training_dtype(Model(), cpu, 10**6) is training_dtype(Model(precision="fp32"), cpu, large) is torch.float32
    assert compute_dtype(Model(), cpu) is torch.float32
    monkeypatch.setattr(device, "WORTHWHILE", 1)
    losses = {}
    for kind in ("auto", "fp32"):
        folder = make_run(kind, f"model.precision={kind}")
        train(folder)
        losses[kind] = [event["loss"] for event in of_type(folder, "step")]
    assert losses["auto"] == pytest.approx(losses["fp32"], rel=0.005)
    assert (losses["auto"] == losses["fp32"]) is not native


KERNELS = """
def fuse(model, rope=True, cross_entropy=False, fused_linear_cross_entropy=True):
    model.fused = {"rope": rope, "losses": [cross_entropy, fused_linear_cross_entropy]}

def _apply_liger_kernel_to_instance(model, **wanted):
    MODEL_TYPE_TO_APPLY_LIGER_FN[model.config.model_type](model, **wanted)

MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": fuse}
"""
"""The two names of liger-kernel 0.8.5 that are used of it; the kernels themselves need a GPU."""


def test_fused_kernels_are_put_into_models_that_they_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "liger_kernel" / "transformers"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "monkey_patch.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(tmp_path)
    model: Any = Lora(rank=2).attach(tiny.tiny_model("llama"), tmp_path)
    liger.fuse(model)
    assert model.get_base_model().fused == {"rope": True, "losses": [False, False]}
    with pytest.raises(InputError) as caught:
        liger.fuse(tiny.tiny_model("gpt2"))
    assert (caught.value.code, caught.value.place) == ("liger.model", "training.liger")
