"""The memory planner where tables learn: new tokens, copies of modules, adapters at embedding and head."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from core.config import Run
from core.data.pack import Flat
from core.forecast import forecast
from core.models.memory import Plan, plan
from core.models.tables import known_tokens, widened
from core.models.varlen import isolate
from core.models.vocabulary import add, embedding_rows, fit
from core.training.imitation import Imitation
from core.training.objective import NextToken, Objective
from tests.core.models_fixtures import make_model, make_tokenizer
from tests.core.test_memory import MORE, SIZES, WORDS, model_of, run_of, shapes_of

TOKENS = "model.add_tokens=[<a>,<b>]"


def attached(run: Run, path: Path, place: Path) -> Any:
    """Return a model as a run would train it."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    add(tokenizer, run.model)
    return run.tuner.attach(model, place, fit(model, tokenizer, run.model))


def planned(run: Run, workspace: Path) -> Plan:
    found = forecast(run, workspace)
    assert found
    return found.plan


def numbers(tuned: Any) -> int:
    return sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def held(tuned: Any) -> int:
    """Return the bytes of all weights that a model holds, tied ones once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in tuned.parameters()}
    return sum(storages.values())


WAYS: dict[str, list[str]] = {
    "full": ["tuner=full", TOKENS],
    "freeze": ["tuner=freeze", "tuner.layers=1", TOKENS],
    "freeze, a table whole": ["tuner=freeze", "tuner.layers=1", "tuner.extra=[embed_tokens]", TOKENS],
    "lora": [TOKENS],
    "lora, a table whole": ["tuner.extra=[embed_tokens]", TOKENS],
    "copy of the head": ["tuner.extra=[lm_head]"],
    "copies": ["tuner.extra=[embed_tokens,lm_head]"],
    "copies of norms": ["tuner.extra=[norm]"],
    "head": ["tuner.targets=[lm_head]"],
    "embedding": ["tuner.targets=[embed_tokens]"],
    "ends": ["tuner.targets=[all-linear,lm_head,embed_tokens]"],
    "pattern": [r"tuner.targets=['model\.embed_tokens|lm_head']"],
    "dora": ["tuner.dora=true", "tuner.targets=[all-linear,lm_head,embed_tokens]"],
    "oft": ["tuner=oft", "tuner.targets=[all-linear,lm_head]"],
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_what_learns_of_tables_and_what_stays_beneath(way: str, tied: bool, tmp_path: Path) -> None:
    make_model(tmp_path / "model", hidden=64, layers=2, tie_word_embeddings=tied)
    run = run_of("model.path=model", "hardware.device=cpu", *WAYS[way])
    found, tuned = planned(run, tmp_path), attached(run, tmp_path / "model", tmp_path)
    assert found.trainable == numbers(tuned)
    assert found.weights + found.learning == held(tuned)


def test_a_tokenizer_is_counted_without_reading_it_as_one(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(tmp_path)
    assert known_tokens(tmp_path) == len(AutoTokenizer.from_pretrained(tmp_path))
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    words = sorted(settings["model"]["vocab"], key=settings["model"]["vocab"].__getitem__)
    settings["model"] = {"type": "Unigram", "vocab": [[word, -1.0] for word in words]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    assert known_tokens(tmp_path) == len(tokenizer)
    (tmp_path / "tokenizer.json").unlink()
    assert known_tokens(tmp_path) is None


def test_a_model_with_rows_to_spare_does_not_grow(tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    assert widened(shapes, WORDS) is shapes
    grown = widened(shapes, WORDS + 1).tensors
    assert {name: shape for name, shape in grown.items() if shape != shapes.tensors[name]} == {
        "model.embed_tokens.weight": (512, 128), "lm_head.weight": (512, 128),
    }  # fmt: skip
    spare = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "spare"))
    spare.resize_token_embeddings(512)
    spare.save_pretrained(tmp_path / "spare")
    run = run_of("model.path=spare", "tuner=full", "hardware.device=cpu", TOKENS)
    tuned = attached(run, tmp_path / "spare", tmp_path)
    assert embedding_rows(tuned) == 512 and planned(run, tmp_path).trainable == numbers(tuned)


PASSES: dict[str, list[str]] = {
    "full": ["tuner=full"],
    "freeze": ["tuner=freeze", "tuner.layers=1", TOKENS],
    "lora": ["tuner.rank=2", TOKENS],
    "copy of the head": ["tuner.rank=2", "tuner.extra=[lm_head]"],
    "copy of the embedding": ["tuner.rank=2", "tuner.extra=[embed_tokens]"],
    "head": ["tuner.rank=2", "tuner.targets=[lm_head]"],
    "many words": ["tuner.rank=2", TOKENS, "training.batch_size=8"],
    "many words, full": ["tuner=full", "training.batch_size=8"],
}


def most(tuned: Any, rows: int, length: int, objective: Objective | None = None) -> int:
    """Return the most bytes that a batch takes on its way there and back, as the profiler of torch tells."""
    ids = np.arange(length) % WORDS
    batch = Flat()([{"input_ids": ids, "labels": ids}] * rows)
    tuned.train()
    return highest(lambda: (objective or NextToken())(tuned, batch, None)[0].backward())


def highest(step: Callable[[], None]) -> int:
    """Return the most bytes that a step takes."""
    with torch.profiler.profile(profile_memory=True) as told:
        step()
    assert told.profiler and told.profiler.kineto_results
    changes = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", PASSES)
def test_what_comes_and_goes_with_tables(way: str, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = SIZES | {"vocab_size": 20_000, "hidden_size": 64, "tie_word_embeddings": tied}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings))
    shapes = shapes_of(model, tmp_path)
    run = run_of("training.batch_size=1", "data.cutoff=16", *PASSES[way])
    assert isolate(model)
    tuned: Any = run.tuner.attach(model, tmp_path, [7, 8] if run.model.added else [])
    found = plan(run, shapes, "cpu")
    counted = most(tuned, run.training.batch_size, run.data.cutoff)
    assert found.peak - found.lasting - found.heap == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("words", [
    ["stage.anchor=0.1"], ["stage.z_loss=0.1"], ["stage.loss=dft"], ["stage.label_smoothing=0.1"],
    ["stage.anchor=0.1", "stage.label_smoothing=0.1"], ["stage.anchor=0.1", "stage.loss=dft"],
    ["stage.anchor=0.1", "stage.z_loss=0.1"],
])  # fmt: skip
def test_what_other_losses_hold_of_logits(words: list[str], tmp_path: Path) -> None:
    settings = SIZES | {"vocab_size": 5_000, "hidden_size": 64, "num_hidden_layers": 1}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings))
    run = run_of("tuner.rank=2", *words)
    found = plan(run, shapes_of(model, tmp_path), "cpu")
    assert isolate(model)
    tuned = run.tuner.attach(model, tmp_path)
    stage: Any = run.stage
    objective = Imitation(stage.loss == "dft", stage.label_smoothing, stage.z_loss, stage.anchor)
    counted = most(tuned, run.training.batch_size, run.data.cutoff, objective)
    assert found.peak - found.lasting - found.heap == pytest.approx(counted, rel=0.1)


def test_experts_by_the_names_of_granite(tmp_path: Path) -> None:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 96, "layer_types":
             ["attention"] * 3, "mamba_n_heads": 8, "mamba_d_head": 32}  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("granitemoehybrid", **SIZES | sizes))
    shapes = shapes_of(model, tmp_path)
    run = run_of("tuner.rank=4", "tuner.experts=true")
    assert plan(run, shapes, "cpu").trainable == numbers(run.tuner.attach(model, tmp_path))


def test_an_adapter_of_experts_that_is_trained_on(tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SIZES | MORE["mixtral"]))
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    first, place = tmp_path / "runs" / "first" / "adapter", tmp_path / "runs" / "new"
    place.mkdir(parents=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    run_of("tuner.rank=4", "tuner.experts=true").tuner.attach(base, place).save_pretrained(first)
    run = run_of("model.path=model", "tuner.start=[first]", "tuner.go_on=true", "hardware.device=cpu")
    tuned = run.tuner.attach(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), place)
    assert planned(run, tmp_path).trainable == numbers(tuned)


def test_what_learns_above_packed_weights_is_held_beside_their_files(tmp_path: Path) -> None:
    shapes = shapes_of(model_of("llama"), tmp_path)
    without, copied = (plan(run_of(*more), shapes, "cpu", 1000) for more in ([], ["tuner.extra=[lm_head]"]))
    assert without.weights == 1000 and copied.weights == 1000 + 4 * WORDS * SIZES["hidden_size"]
