"""Several adapters: one after the other in the weights, the last one trained on, all of them in what is saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from core import bases, config, preflight
from core.errors import InputError, Stopped
from core.models.inspect import inspect_adapter
from core.models.lineup import Lineup
from core.models.loading import load
from core.sections import Hardware, Model
from core.tuners.lora import Lora
from tests.core.helpers import digest, train, weights
from tests.core.models_fixtures import context, make_adapter, told
from tests.core.test_tuners import learn_a_little, logits

MANY: dict[str, dict[str, Any]] = {
    "first": {"r": 4, "lora_alpha": 8},
    "second": {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "third": {"r": 3, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"v_proj": 7}, "target_modules": ["v_proj"]},
}


@pytest.fixture
def started(workspace: Path, tiny_model: Path) -> Path:
    """A run folder beside runs with the adapters of MANY."""
    for seed, (name, settings) in enumerate(MANY.items()):
        make_adapter(workspace / "runs" / name / "adapter", tiny_model, seed=seed, **settings)
    (workspace / "runs" / "new").mkdir()
    return workspace / "runs" / "new"


def fresh(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def by_hand(model: Any, adapter: Path, scale: Callable[[str], float]) -> Any:
    """Apply W += s·B·A, one weight after the other."""
    stored = load_file(adapter / "adapter_model.safetensors")
    for name in stored:
        if "lora_A" in name:
            place = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            A, B = stored[name], stored[name.replace("lora_A", "lora_B")]
            model.get_submodule(place).weight.data += scale(place) * (B @ A)
    return model


def test_merging_equals_sequential_application(started: Path, tiny_model: Path) -> None:
    runs = started.parent
    wanted = by_hand(fresh(tiny_model), runs / "first" / "adapter", lambda _: 8 / 4)
    wanted = by_hand(wanted, runs / "second" / "adapter", lambda _: 3 / 2**0.5)
    wanted = by_hand(wanted, runs / "third" / "adapter", lambda _: 7 / 5)
    tuner = Lora(rank=4, start=list(MANY))
    tuned: Any = tuner.attach(fresh(tiny_model), started)
    assert torch.allclose(logits(tuned), logits(wanted), atol=1e-4)
    own = {name.replace(".base_layer", ""): p for name, p in tuned.get_base_model().named_parameters()}
    for name, parameter in wanted.named_parameters():
        assert torch.allclose(own[name], parameter, atol=1e-5)
    assert all(".default." in name for name, p in tuned.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("settings", [
    {}, {"pissa": True}, {"rslora": True, "alpha": 5}, {"targets": ["q_proj", "embed_tokens"]}, {"extra": ["lm_head"]},
    {"go_on": True},
])  # fmt: skip
def test_what_is_saved_stands_above_the_first_base(started: Path, tiny_model: Path, settings: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    tuner = Lora(rank=4, start=list(MANY), **settings)
    tuned: Any = tuner.attach(fresh(tiny_model), started)
    begun = logits(tuned)
    learn_a_little(tuned)
    trained = logits(tuned)
    assert (trained - begun).abs().max() > 0.05
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), started)
    shutil.rmtree(started.parent / "first")  # nothing else is needed
    reloaded: Any = PeftModel.from_pretrained(fresh(tiny_model), place)
    assert (logits(reloaded) - trained).abs().max() <= 1e-4
    facts = inspect_adapter(place)
    assert facts.base == str(tiny_model) and facts.rank == max(
        tensor.shape[0] for name, tensor in weights(place).items() if "lora_A" in name
    )
    lineup = Lineup(Model(path=str(tiny_model)), ["new"], started.parents[1], Hardware(device="cpu"))
    with lineup.use("new") as model:
        assert torch.allclose(logits(model), trained, atol=1e-4)


def test_one_alone_is_trained_on_as_it_is(started: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    adapter = make_adapter(started.parents[1] / "dora", tiny_model, use_dora=True, r=3, lora_alpha=5)
    wanted = logits(PeftModel.from_pretrained(fresh(tiny_model), adapter))
    tuner = Lora(rank=64, start=["dora"], go_on=True)
    tuned: Any = tuner.attach(fresh(tiny_model), started)
    assert torch.allclose(logits(tuned), wanted, atol=1e-6)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    learn_a_little(tuned)
    moved = {name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    place = tuner.save(tuned, AutoTokenizer.from_pretrained(tiny_model), started)
    assert weights(place).keys() == weights(adapter).keys() and inspect_adapter(place).rank == 3
    again = PeftModel.from_pretrained(fresh(tiny_model), place)
    assert torch.allclose(logits(again), logits(tuned), atol=1e-6)


@pytest.mark.parametrize("settings", [(), ("tuner.go_on=true",), ("tuner.pissa=true",)])
def test_a_resumed_run_needs_them_no_more(
    make_run: Callable[..., Path], started: Path, settings: tuple[str, ...]
) -> None:
    given = ["tuner.start=[first, second]", "training.max_steps=6", *settings]
    whole, broken = make_run("whole", *given), make_run("broken", *given)
    train(whole)
    with pytest.raises(Stopped):
        train(broken, stop_at=3)
    for name in ("first", "second"):
        shutil.rmtree(started.parent / name)
    train(broken)
    assert digest(broken / "adapter") == digest(whole / "adapter")


CHANGES = {"dropout": "0.5", "targets": "[q_proj]", "layers": "0", "extra": "[norm]", "rslora": "true", "dora": "true"}
"""Settings that an adapter which is trained on would not follow."""


@pytest.mark.parametrize(("settings", "code", "place"), [
    (["tuner.go_on=true"], "start.none", "tuner.lora.start"),
    (["tuner.go_on=true", "tuner.start=[a]", "tuner.pissa=true"], "lora.beginnings", "tuner.lora.pissa"),
    (["tuner.start=[a]", "tuner.dora=true"], "start.dora", "tuner.lora.dora"),
    (["tuner.start=[a]", "tuner.experts=true"], "start.experts", "tuner.lora.experts"),
    (["tuner.start=[a, b]", "tuner.go_on=true", "tuner.experts=true"], "start.experts", "tuner.lora.experts"),
    (["tuner.start=[a]", "model.quantizer.kind=bnb_4bit"], "quantizer.start", "tuner.lora.start"),
    (["tuner.start=[a]", "tuner.go_on=true", "model.add_tokens=[new]"], "start.tokens", "tuner.lora.go_on"),
    *((["tuner.start=[a]", "tuner.go_on=true", f"tuner.{name}={value}"], "start.as_it_is", f"tuner.lora.{name}")
      for name, value in CHANGES.items()),
])  # fmt: skip
def test_refused_before_the_start(settings: list[str], code: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        config.resolve(config.override(settings))
    assert (caught.value.code, caught.value.place) == (code, place)


@pytest.mark.parametrize(("settings", "code"), [
    ({"use_dora": True}, "start.not_lora"),
    ({"modules_to_save": ["lm_head"]}, "start.not_lora"),
    ({"target_modules": ["embed_tokens"]}, "start.not_lora"),
    ({"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [0]}, ""),
    (None, "start.whole"),
])  # fmt: skip
def test_only_what_adds_up_is_put_together(
    started: Path, tiny_model: Path, settings: dict[str, Any] | None, code: str
) -> None:
    folder = started.parents[1] / "odd"
    if settings is None:
        shutil.copytree(tiny_model, folder)
    else:
        make_adapter(folder, tiny_model, **settings)
    for tuner in (Lora(start=["odd", "first"]), Lora(start=["first", "odd"], go_on=True)):
        if code and not (tuner.go_on and settings == {"target_modules": ["embed_tokens"]}):
            with pytest.raises(InputError) as caught:
                tuner.attach(fresh(tiny_model), started)
            assert (caught.value.code, caught.value.place) == (code, "tuner.lora.start")
            shutil.rmtree(started / "parts", ignore_errors=True)
        else:
            tuner.attach(fresh(tiny_model), started)
            shutil.rmtree(started / "parts")


def refusal(run: Any, workspace: Path) -> tuple[str, dict[str, Any]]:
    """Return (code, parameters) of what stands against the adapters that a run starts from; ("", {}) if nothing."""
    try:
        preflight.check(run, workspace)
    except InputError as error:
        assert error.place == "tuner.lora.start"
        return error.code, dict(error.params)
    return "", {}


def test_none_counts_twice(started: Path, make_run: Callable[..., Path]) -> None:
    make_run("later", "tuner.start=[first]")
    shutil.copytree(started.parent / "first" / "adapter", started.parent / "later" / "adapter")
    for names, code in ((["first", "later"], "start.twice"), (["second", "later"], "")):
        run = config.load((make_run(f"of {code}", f"tuner.start={names}") / "run.yaml").read_text(), "run.yaml")
        assert refusal(run, started.parents[1]) == (code, {"given": "first", "run": "later"} if code else {})


@pytest.mark.parametrize("again", ["first", "runs/first/adapter", "runs/../runs/first/adapter"])
def test_none_stands_there_twice(started: Path, make_run: Callable[..., Path], again: str) -> None:
    run = config.load((make_run("doubled", f"tuner.start=[first,second,{again}]") / "run.yaml").read_text(), "run.yaml")
    assert refusal(run, started.parents[1]) == ("start.same", {"given": again, "first": "first"})


def test_none_counts_twice_by_another_name(started: Path, make_run: Callable[..., Path]) -> None:
    make_run("later", "tuner.start=[runs/first/adapter]")
    shutil.copytree(started.parent / "first" / "adapter", started.parent / "later" / "adapter")
    run = config.load((make_run("both", "tuner.start=[first,later]") / "run.yaml").read_text(), "run.yaml")
    assert refusal(run, started.parents[1]) == ("start.twice", {"given": "first", "run": "later"})


def test_other_bases_and_positions_are_told(started: Path, tiny_model: Path, make_run: Callable[..., Path]) -> None:
    workspace = started.parents[1]
    moved, other = (Path(shutil.copytree(tiny_model, workspace / name)) for name in ("moved", "other"))
    model = fresh(tiny_model)
    model.lm_head.weight.data += 1
    model.save_pretrained(other)
    for name, settings in (("same", ()), ("long", ("model.rope=linear", "model.context=512")), ("gone", ())):
        run = make_run(name, *settings)
        shutil.copytree(started.parent / "first" / "adapter", run / "adapter")
    gone = started.parent / "gone" / "run.yaml"
    gone.write_text(gone.read_text().replace(str(tiny_model), "no/such/model"))
    for reference, path, code in (
        ("same", tiny_model, []), ("same", moved, []), ("same", other, ["adapter.other_base"]), ("gone", other, []),
        ("long", moved, ["adapter.other_positions"]), ("first", other, []),
    ):  # fmt: skip
        with context(workspace, f"{reference} {path.name}") as at:
            bases.warn_of([reference], Model(path=str(path)), at, "source")
        assert [event["code"] for event in told(at, "warning")] == code


def test_the_board_sees_what_is_missing(tiny_model: Path, tiny_data: Path, started: Path) -> None:
    job = {"model": {"path": str(tiny_model)}, "data": {"folder": str(tiny_data), "train": ["orders"]}}
    given = [(["first", "none"], "path.missing"), (["new"], "run.untuned"), (["first"], "")]
    for names, code in given:
        run = config.resolve(job, {"tuner": {"kind": "lora", "start": names}})
        assert refusal(run, started.parents[1])[0] == code


def test_new_tokens_above_earlier_adapters(started: Path, tiny_model: Path) -> None:
    workspace = started.parents[1]
    model, tokenizer = load(Model(path=str(tiny_model), add_tokens=["one more"]), workspace, Hardware(device="cpu"))
    tuner = Lora(rank=2, start=["first", "second"])
    tuned: Any = tuner.attach(model, started, [323])
    learn_a_little(tuned)
    ids = torch.tensor([[323, 5, 7]])
    wanted = tuned.eval()(ids).logits
    tuner.save(tuned, tokenizer, started)
    lineup = Lineup(Model(path=str(tiny_model)), ["new", "first"], workspace, Hardware(device="cpu"))
    with lineup.use("new") as again, torch.no_grad():
        assert torch.allclose(again(ids).logits, wanted, atol=1e-4)
