"""Weights in few bits: what is trained above them, what can't be, and packages that are missing or broken."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from core import config
from core.errors import InputError
from core.forecast import foresee
from core.models import bits, packages
from core.models.loading import load_model
from core.models.packed import PACKINGS, method
from core.models.room import Room
from core.models.shapes import Shapes
from core.preflight import check_model
from core.quantizers.bnb_4bit import Bnb4Bit
from core.schema import variants
from core.sections import Hardware, Model
from core.tuners.full import Full
from core.tuners.lora import Lora
from tests.conftest import copy_of, launch_worker
from tests.core import tiny
from tests.core.helpers import of_type, train

CPU = Hardware(device="cpu")
IDS_B_T = torch.arange(5, 29).reshape(2, 12)
BNB: dict[str, dict[str, Any]] = {
    "nf4": {"kind": "bnb_4bit", "double": False},
    "nf4 double": {"kind": "bnb_4bit"},
    "fp4": {"kind": "bnb_4bit", "type": "fp4", "double": False},
    "nf4 bf16": {"kind": "bnb_4bit", "compute": "bf16"},
    "int8": {"kind": "bnb_8bit"},
}
EXTRAS = Path(sys.prefix) / "extras"
"""Where `make dev` puts optional packages: in the environment itself they would be imported by every run."""


def loaded(folder: Path, quantizer: dict[str, Any], *, training: bool = True) -> Any:
    return load_model(Model(path=str(folder), quantizer=quantizer), folder, CPU, training=training)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BNB)
def test_gradients_are_those_of_the_unpacked_weights(tiny_model: Path, tmp_path: Path, name: str) -> None:
    gradients = []
    for unpacked in (False, True):
        model = loaded(tiny_model, BNB[name])
        if unpacked:
            model = model.dequantize().float()
        torch.manual_seed(0)
        tuned: Any = Lora(rank=4, alpha=8).attach(model, tmp_path)
        for key, parameter in tuned.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.05)
        tuned.eval()
        with torch.no_grad():
            tuned(IDS_B_T)  # an answer without gradients must change nothing
        tuned.train()
        tuned(IDS_B_T, labels=IDS_B_T).loss.backward()
        gradients.append({key: p.grad for key, p in tuned.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 28
    close = 0.03 if name in ("int8", "nf4 bf16") else 1e-4  # these round what is multiplied, too
    for key, found in gradients[0].items():
        wanted = gradients[1][key]
        assert wanted.norm() > 0 and (found - wanted).norm() <= close * wanted.norm(), key


@pytest.mark.parametrize("name", ["nf4 double", "int8"])
def test_a_run_learns_the_same_with_and_without_evaluations(
    make_run: Callable[..., Path], tiny_model: Path, name: str
) -> None:
    losses = {}
    settings = [f"model.quantizer.{key}={value}" for key, value in BNB[name].items()]
    for every in (1, 10):
        folder = make_run(f"{name}{every}".replace(" ", ""), *settings, f"training.eval_every={every}")
        train(folder)
        losses[every] = [event["loss"] for event in of_type(folder, "step")]
        facts = next(event for event in of_type(folder, "phase") if event["phase"] == "train")["params"]
    assert losses[1] == losses[10] and losses[1][-1] < 0.95 * losses[1][0]
    assert facts["parameters"] - facts["trainable"] == AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()


@pytest.mark.parametrize(("name", "most"), [("nf4", 0.57), ("nf4 double", 0.53), ("int8", 1.03)])
def test_a_weight_takes_as_many_bytes_as_promised(tmp_path: Path, tiny_model: Path, name: str, most: float) -> None:
    """Of layers as wide as those of real models: 0.5 bytes and a scale for each 64 weights, itself quantized or not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = copy_of(tiny_model, tmp_path / "wide")
    config_ = json.loads((folder / "config.json").read_text()) | {"hidden_size": 512, "intermediate_size": 1024}
    LlamaForCausalLM(LlamaConfig(**config_)).save_pretrained(folder)
    model = loaded(folder, BNB[name])
    weights = bytes_ = 0
    for layer_name, layer in model.named_modules():
        if layer_name.endswith("_proj"):
            weights += layer.in_features * layer.out_features
            tensors = [layer.weight, *(v for k, v in layer.state_dict().items() if k != "weight")]
            bytes_ += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    assert 0.5 <= bytes_ / weights <= most


REFUSED = {
    "full": (["tuner.kind=full"], "tuner", "quantizer.full"),
    "freeze": (["tuner.kind=freeze"], "tuner", "quantizer.full"),
    "pissa": (["tuner.pissa=true"], "tuner.lora.pissa", "quantizer.pissa"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_weights_themselves_is_refused_before_the_start(name: str) -> None:
    settings, place, code = REFUSED[name]
    with pytest.raises(InputError) as caught:
        config.resolve(config.override(["model.quantizer.kind=bnb_4bit", *settings]))
    assert (caught.value.place, caught.value.code) == (place, code)


@pytest.mark.parametrize("kind", ["hqq", "torchao"])
def test_what_is_not_here_is_named(tiny_model: Path, kind: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded(tiny_model, {"kind": kind})
    expected = {"hqq": "quantizer.device", "torchao": "package.missing"}
    assert caught.value.code == expected[kind] and caught.value.place == "model.quantizer"


def test_torchao_teaches(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if not (EXTRAS / "torchao").is_dir():
        pytest.skip("make dev has not put torchao beside the environment")
    monkeypatch.setenv("PYTHONPATH", str(EXTRAS))
    folder = make_run("ao", "model.quantizer.kind=torchao")
    assert launch_worker(folder).wait(180) == 0, (folder / "console.log").read_text()
    losses = [event["loss"] for event in of_type(folder, "step")]
    assert losses[-1] < 0.95 * losses[0]


def test_a_model_packed_as_fp8_is_unpacked_and_trained(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "fp8")
    weights, packed, wanted = load_file(folder / "model.safetensors"), {}, {}
    for name, weight in weights.items():
        packed[name] = weight
        if name.endswith("_proj.weight"):
            rows, columns = (math.gcd(size, 32) for size in weight.shape)
            blocks = weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
            scale = blocks.abs().amax((1, 3), keepdim=True) / 448
            small = (blocks / scale).to(torch.float8_e4m3fn)
            packed[name] = small.reshape(weight.shape)
            packed[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
            wanted[name] = (small.float() * scale).reshape(weight.shape)
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    told["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(told))
    model = loaded(folder, {"kind": "none"})
    for name, weight in wanted.items():
        assert torch.equal(model.get_parameter(name).detach(), weight), name
    Full().attach(model, tmp_path)(IDS_B_T, labels=IDS_B_T).loss.backward()
    with pytest.raises(InputError) as caught:
        loaded(folder, {"kind": "bnb_4bit"})
    assert (caught.value.code, caught.value.place) == ("packed.twice", "model.quantizer")


@pytest.mark.parametrize("kind", ["bnb_4bit", "bnb_8bit"])
def test_layers_that_bitsandbytes_would_leave_as_they_are_are_told(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    for family in ("llama", "gpt2", "falcon"):
        folder = copy_of(tiny_model, tmp_path / family)
        tiny.tiny_model(family).save_pretrained(folder)
        run = config.run(config.override([f"model.path={folder}", f"model.quantizer.kind={kind}"]))
        if family != "falcon":
            assert check_model(run, tmp_path)
            assert sum(type(module).__name__ in bits.PACKED for module in loaded(folder, {"kind": kind}).modules()) >= 8
            continue
        for ask in (lambda: loaded(folder, {"kind": kind}), lambda: check_model(run, tmp_path)):  # noqa: B023
            with pytest.raises(InputError) as caught:
                ask()
            assert (caught.value.code, caught.value.place) == ("quantizer.packs_little", "model.quantizer")
            assert caught.value.params["type"] == "falcon"
        assert check_model(config.run(run.model_dump(), {"model": {"quantizer": {"kind": "none"}}}), tmp_path)


def test_bits_are_offered_where_layers_can_be_packed() -> None:
    run = config.run(
        config.override(["training.batch_size=1", "data.cutoff=64", "training.gradient_checkpointing=true"])
    )
    layers = {f"h.{number}.mlp.dense.weight": (8192, 8192) for number in range(32)} | {"wte.weight": (1000, 8192)}
    for kind in ("llama", "falcon"):
        found = foresee(run, Shapes(layers, {"model_type": kind}), 0, Room("cuda", 3 << 30, 3 << 30))
        assert any("model.quantizer" in fix.patch for fix in found.fixes) is (kind == "llama")


PACKED = {
    "gptq": ("package.alone", {"package": "gptqmodel"}),
    "awq": ("package.alone", {"package": "gptqmodel"}),
    "aqlm": ("package.missing", {"package": "aqlm"}),
    "compressed-tensors": ("package.missing", {"package": "compressed_tensors"}),
    "vptq": ("package.missing", {"package": "vptq"}),
    "bitnet": ("packed.no_training", {"given": "bitnet"}),
    "magic": ("packed.unknown", {"given": "magic"}),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_model_that_can_not_be_trained_here_says_why(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(tiny_model, tmp_path / "packed")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "quantization_config": {"quant_method": name}}))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "packed": torch.zeros(1, dtype=torch.int32)}, folder / "model.safetensors", {"format": "pt"})
    code, params = PACKED[name]
    with pytest.raises(InputError) as caught:
        loaded(folder, {"kind": "none"})
    assert caught.value.code == code and params.items() <= caught.value.params.items()


def test_the_table_of_packings_is_that_of_transformers() -> None:
    assert set(PACKINGS) - {"bitsandbytes"} <= set(AUTO_QUANTIZER_MAPPING)
    assert method({"quantization_config": {"load_in_4bit": True}}) == "bitsandbytes" and method({}) == ""


def test_a_model_saved_in_four_bits_takes_an_adapter_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "packed")
    loaded(tiny_model, BNB["nf4"]).save_pretrained(folder)
    model = loaded(folder, {"kind": "none"})
    packed = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert len(packed) == 14 and not any(module.support_avx512bf16_for_cpu for module in packed)
    with pytest.raises(InputError) as caught:
        Full().attach(model, tmp_path)
    assert (caught.value.code, caught.value.place) == ("packed.full", "tuner")
    with pytest.raises(InputError) as caught:
        Lora(pissa=True).attach(model, tmp_path)
    assert caught.value.code == "quantizer.pissa"
    tuned: Any = Lora(rank=4).attach(model, tmp_path)
    tuned(IDS_B_T, labels=IDS_B_T).loss.backward()


def test_a_broken_package_is_hidden_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("brokenpackage", "import nothing_of_this_name"), ("wholepackage", "x = 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "brokenpackage", raising=False)
    names = ("brokenpackage", "wholepackage", "absentpackage")
    told = packages.shield(tmp_path, names)
    assert list(told) == ["brokenpackage"] and "nothing_of_this_name" in told["brokenpackage"]
    assert find_spec("brokenpackage") is None and find_spec("wholepackage")
    known = json.loads((tmp_path / ".cache" / "packages.json").read_text())
    assert len(known) == 2, "each is tried once"
    del sys.modules["brokenpackage"]
    monkeypatch.setattr(packages, "_tried", lambda name: pytest.fail("tried again"))
    assert packages.shield(tmp_path, names) == told
    del sys.modules["brokenpackage"]
    for name, code in (("brokenpackage", "package.broken"), ("absentpackage", "package.missing")):
        with pytest.raises(InputError) as caught:
            packages.require(name, "model.quantizer")
        assert (caught.value.code, caught.value.place) == (code, "model.quantizer")


def test_what_fetches_code_from_the_hub_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    assert find_spec("kernels")
    packages.shield(tmp_path, ())
    assert find_spec("kernels") is None
    monkeypatch.delitem(sys.modules, "kernels")


def test_every_quantizer_says_what_it_is() -> None:
    assert set(variants("core.quantizers")) == {"none", "bnb_4bit", "bnb_8bit", "torchao", "hqq"}
    assert Bnb4Bit().loading(torch.float32, torch.device("cpu")).bnb_4bit_compute_dtype is torch.float32


@pytest.mark.parametrize("name", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["mamba", "deepseek_v3"])
def test_layers_that_are_read_past_or_see_four_dimensions_learn(
    tiny_model: Path, tmp_path: Path, kind: str, name: str
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 400, "pad_token_id": 0}
    more: dict[str, Any] = {
        "mamba": {"state_size": 4},
        "deepseek_v3": {
            "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 16,
            "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": 2,
        },
    }  # fmt: skip
    folder = copy_of(tiny_model, tmp_path / kind)
    (folder / "model.safetensors").unlink()
    shape = AutoConfig.for_model(kind, **sizes, **more[kind])
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    model = loaded(folder, BNB[name])
    assert any(type(module).__name__ in ("Linear4bit", "Linear8bitLt") for module in model.modules())
    model = Lora(rank=4, alpha=8).attach(model, tmp_path)
    model(IDS_B_T, labels=IDS_B_T, use_cache=False).loss.backward()
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    assert learning and all(weight.grad is not None for weight in learning)
