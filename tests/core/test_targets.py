"""Which layers targets mean and which modules learn whole, and that the planner counts the same."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from core import config
from core.config import Run
from core.errors import InputError
from core.forecast import check, forecast
from core.models import linear
from core.models.memory import plan
from core.models.targets import alike, ending, fits
from core.preflight import check_model
from core.tuners import Tuner
from core.tuners.lora import Lora
from core.tuners.oft import Oft
from tests.core import tiny
from tests.core.seeing import make_llava
from tests.core.test_memory import run_of, shapes_of


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava") / "tiny")


def learning(tuned: Any) -> dict[str, int]:
    return {name: p.numel() for name, p in tuned.named_parameters() if p.requires_grad}


def refused(tuner: Tuner, model: Any, folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        tuner.attach(model, folder)
    return caught.value


EYES, BRIDGE, TEXT = r".*vision_tower\..*", r".*multi_modal_projector\..*", r".*language_model\..*"


@pytest.mark.parametrize("kind", ["lora", "oft"])
@pytest.mark.parametrize(("targets", "count", "where"), [
    (["all-linear"], 14, TEXT), ([".*"], 14, TEXT), (["q_proj", "v_proj"], 4, TEXT), ([".*q_proj"], 2, TEXT),
    (["k_proj", ".*self_attn.*"], 8, TEXT), (["model.language_model.layers.1.mlp.up_proj"], 1, TEXT),
    (["vision_tower.*q_proj"], 2, EYES), ([r"(model\.)?vision_tower\..*"], 12, EYES),
    (["model.vision_tower.encoder.layers.0.mlp.fc1"], 1, EYES), ([".*multi_modal_projector.*"], 2, BRIDGE),
    ([".*(vision_tower|language_model).*v_proj"], 4, f"{EYES}|{TEXT}"),
])  # fmt: skip
def test_eyes_learn_only_where_they_are_named(
    llava: Path, tmp_path: Path, kind: str, targets: list[str], count: int, where: str
) -> None:
    settings = {"kind": kind, "targets": targets} | ({"rank": 2} if kind == "lora" else {"block": 8})
    run = config.resolve({"model": {"path": str(llava)}, "tuner": settings})
    assert isinstance(run, Run)
    tuned = run.tuner.attach(AutoModelForImageTextToText.from_pretrained(llava), tmp_path)
    found = learning(tuned)
    assert all(re.fullmatch(where, name) for name in found)
    assert len({re.sub(r"\.(lora|oft)_.*", "", name) for name in found}) == count
    told = forecast(run, tmp_path)
    assert told and told.plan.trainable == sum(found.values())


@pytest.mark.parametrize(("kind", "target", "code"), [
    ("llama", "norm", "tuner.no_adapter"), ("llama", ".*norm", "tuner.no_adapter"),
    ("llama", "act_fn", "tuner.no_adapter"), ("llama", "rotary_emb", "tuner.no_adapter"),
    ("llama", "mlp", "tuner.no_adapter"), ("llama", "layers", "tuner.no_adapter"),
    ("llama", "magic", "tuner.no_module"), ("llama", ".*head", "tuner.apart"),
    ("mamba", "conv1d", "tuner.no_adapter"), ("mamba", "out_proj", "tuner.no_adapter"),
    ("mamba", "dt_proj", "tuner.no_adapter"), ("mixtral", "gate", "tuner.no_adapter"),
    ("opt", "embed_positions", "tuner.no_adapter"), ("llava", "fc1", "tuner.apart"),
])  # fmt: skip
def test_targets_that_mean_nothing_are_refused(kind: str, target: str, code: str, llava: Path, tmp_path: Path) -> None:
    """Each name that the refusal offers can be used."""
    made: Any = AutoModelForImageTextToText.from_pretrained(llava) if kind == "llava" else tiny.tiny_model(kind)
    for tuner in (Lora(rank=2, targets=["all-linear", target]), Oft(block=4, targets=["all-linear", target])):
        error = refused(tuner, made, tmp_path)
        assert (error.code, error.place) == (code, f"tuner.{tuner.kind}.targets")
        if known := error.params.get("known", ""):
            again: Any = tiny.tiny_model(kind)
            tuned: Any = tuner.model_copy(update={"targets": known.split(", ")}).attach(again, tmp_path)
            tuned.train()(**tiny.tiny_batch()).loss.backward()
            assert all(p.grad is not None for name, p in tuned.named_parameters() if p.requires_grad), known
        if code == "tuner.apart":
            assert refused(tuner, made, tmp_path).params["part"] in ("lm_head", "vision_tower")


@pytest.mark.parametrize("kind", ["lora", "oft"])
@pytest.mark.parametrize(("target", "code"), [
    (r"(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5roj", "tuner.endless"), ("q" * 1001, "tuner.endless"),
    ("(a{99}){99}", "tuner.endless"), ("(" * 490 + ")" * 490, "tuner.endless"),
    ("(", "tuner.pattern"), ("(?R)", "tuner.pattern"),
])  # fmt: skip
def test_what_is_no_pattern_or_has_no_end_is_refused_where_it_is_set(kind: str, target: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        config.resolve({"tuner": {"kind": kind, "targets": ["q_proj", target]}})
    assert (caught.value.code, caught.value.place) == (code, f"tuner.{kind}.targets")
    assert caught.value.params["given"] == target[:80]


def test_patterns_take_no_time_however_often_they_repeat() -> None:
    name = "model.language_model.layers.10.self_attn.q_proj"
    begun = time.process_time()
    for target in (".*" * 6 + "[!?]", ".*" * 9 + "[!?]", r"(\w+\.?)+[!?]", "(a|b|.)*!"):
        assert not any(fits(f"{name}{number}", ending([target])[0]) for number in range(10))
    assert time.process_time() - begun < 5 and fits(name, ".*" * 6 + "q_proj")
    with pytest.raises(InputError) as caught:
        fits(2 * name, r"(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5roj")
    assert (caught.value.code, caught.value.place) == ("tuner.endless", "tuner")


def test_layers_are_those_of_the_text_part(llava: Path, tmp_path: Path) -> None:
    tuner = Lora(rank=2, targets=["q_proj", "vision_tower.*q_proj"], layers="1")
    model: Any = AutoModelForImageTextToText.from_pretrained(llava)
    run = config.resolve({"model": {"path": str(llava)}, "tuner": tuner.model_dump()})
    for ask in (lambda: tuner.attach(model, tmp_path), lambda: check_model(run, tmp_path)):
        with pytest.raises(InputError) as caught:
            ask()
        assert (caught.value.code, caught.value.place) == ("lora.elsewhere", "tuner.lora.layers")
        assert caught.value.params == {"module": "vision_tower.*q_proj", "last": 1}


def test_a_pattern_of_all_is_all_linear(tmp_path: Path) -> None:
    for kind in ("llama", "mamba", "gpt2", "qwen2_moe", "deepseek_v3", "falcon_h1", "opt", "falcon"):
        found = [learning(Lora(rank=2, targets=[target]).attach(tiny.tiny_model(kind), tmp_path))
                 for target in (".*", "all-linear")]  # fmt: skip
        assert found[0] == found[1], kind


def test_tables_and_routers_are_meant_by_name(tmp_path: Path) -> None:
    for targets, ends in ((["embed_tokens", ".*lm_head"], {"embed_tokens", "lm_head"}),
                          ([".*(q_proj|shared_expert_gate)"], {"q_proj", "shared_expert_gate"})):  # fmt: skip
        found = learning(Lora(rank=2, targets=targets).attach(tiny.tiny_model("qwen2_moe"), tmp_path))
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in found} == ends
    error = refused(Oft(block=4, targets=["embed_tokens"]), tiny.tiny_model("llama"), tmp_path)
    assert (error.code, error.place) == ("tuner.no_adapter", "tuner.oft.targets")


WHOLE: dict[str, tuple[list[str], set[str]]] = {
    "norm": (["norm"], {"model.norm"}),
    "mlp": (["mlp"], {"model.layers.0.mlp", "model.layers.1.mlp"}),
    "a target": (["q_proj"], {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}),
    "one in another": (["layers.1", "up_proj"], {"model.layers.1", "model.layers.0.mlp.up_proj"}),
    "head": (["lm_head", "self_attn.o_proj"],
             {"lm_head", "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"}),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_modules_that_learn_whole_are_those_that_are_named(name: str, tiny_model: Path, tmp_path: Path) -> None:
    extra, wanted = WHOLE[name]

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    tuner = Lora(rank=2, extra=extra)
    tuned: Any = tuner.attach(fresh(), tmp_path)
    found = learning(tuned)
    whole = {key.removeprefix("base_model.model.").split(".modules_to_save")[0] for key in found if "lora_" not in key}
    assert whole == wanted
    assert not any(key.startswith(f"base_model.model.{module}.") for key in found if "lora_" in key for module in whole)
    run = run_of("tuner.rank=2", f"tuner.extra=[{','.join(extra)}]")
    assert plan(run, shapes_of(fresh(), tmp_path / "shapes"), "cpu").trainable == sum(found.values())
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    ids_1_T = torch.arange(12)[None]
    trained = tuned.eval()(ids_1_T).logits
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), tmp_path)
    assert torch.allclose(PeftModel.from_pretrained(fresh(), place).eval()(ids_1_T).logits, trained, atol=1e-5)


@pytest.mark.parametrize(("extra", "code"), [
    ("layers", "tuner.not_whole"), ("act_fn", "tuner.not_whole"), ("magic", "tuner.no_module"),
    ("model", "lora.all_whole"),
])  # fmt: skip
def test_modules_that_can_not_learn_whole_are_refused(extra: str, code: str, tmp_path: Path) -> None:
    error = refused(Lora(rank=2, extra=[extra]), tiny.tiny_model("llama"), tmp_path)
    assert (error.code, error.place) == (code, "tuner.lora.extra")
    for known in error.params.get("known", "norm").split(", "):
        assert learning(Lora(rank=2, extra=[known]).attach(tiny.tiny_model("llama"), tmp_path))


SEVEN = "[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"


@pytest.mark.parametrize(("kind", "words", "code"), [
    ("qwen3_moe", [f"targets={SEVEN}"], "lora.of_experts"), ("glm4_moe", [f"targets={SEVEN}"], "lora.of_experts"),
    ("mixtral", ["targets=[gate_proj]"], "lora.of_experts"), ("glm_ocr", [f"targets={SEVEN}"], "tuner.apart"),
    ("qwen3_moe", ["targets=[gate]"], "tuner.no_adapter"),
    ("phi4_multimodal", ["targets=[q_proj]"], "tuner.apart"), ("llama4", ["kind=expand", "blocks=1"], "expand.unfit"),
    ("cohere", ["kind=freeze", "extra=[lm_head]"], "tuner.not_whole"),
    ("cohere", ["kind=freeze", "extra=[bias]"], "tuner.no_module"),
    ("minicpmv4_6", ["extra=[layer_norm1]"], "tuner.apart"),
])  # fmt: skip
def test_what_a_run_refuses_is_refused_by_the_files_too(kind: str, words: list[str], code: str, tmp_path: Path) -> None:
    model = tiny.tiny_model(kind)
    model.save_pretrained(tmp_path / "model")
    run = run_of(f"model.path={tmp_path / 'model'}", *(f"tuner.{word}" for word in words))
    with pytest.raises(InputError) as hot:
        run.tuner.check_made(model)
    assert hot.value.code == code
    if alike(kind):
        with pytest.raises(InputError) as cold:
            check(run, tmp_path)
        assert (cold.value.code, cold.value.place) == (code, hot.value.place)


@pytest.mark.parametrize("words", [["extra=[mlp]"], ["kind=freeze", "layers=0", "extra=[mlp]"]])
def test_what_sees_learns_whole_only_where_it_is_named(words: list[str], llava: Path, tmp_path: Path) -> None:
    for word, where in (("mlp", TEXT), ("vision_tower.encoder.layers.0.mlp", EYES)):
        run = run_of(f"model.path={llava}", *(f"tuner.{one.replace('mlp', word)}" for one in words))
        tuned = run.tuner.attach(AutoModelForImageTextToText.from_pretrained(llava), tmp_path)
        found = learning(tuned)
        assert all(re.fullmatch(where, name) for name in found if ".lora_" not in name)
        assert sum(".mlp." in name for name in found) == (6 if word == "mlp" else 4 + 12 * (run.tuner.kind == "lora"))
        told = forecast(run, tmp_path)
        assert told and told.plan.trainable == sum(found.values())


def test_names_are_kept_as_given_where_peft_reads_them_alike() -> None:
    model = tiny.tiny_model("llama")
    for given in (["lm_head", "embed_tokens"], ["q_proj"], ["norm"]):
        meant = linear.wholly(model, given, "tuner.lora.extra")
        assert linear.as_ends(model, given, meant) == (["model.norm"] if given == ["norm"] else given)
