"""Losses of fine-tuning by example against their formulas, and the noise of NEFTune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import LabelSmoother

from core import config
from core.data.pack import Flat, Padder
from core.errors import InputError, Stopped
from core.models.varlen import isolate
from core.training.imitation import Imitation, noisy
from core.training.objective import NextToken
from tests.core.helpers import digest, of_type, train

MakeRun = Callable[..., Path]


@pytest.fixture
def model(tiny_model: Path) -> Any:
    """The tiny model in training with an adapter that says something."""
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(3)
    tuned: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return tuned.train()


def rows() -> list[dict[str, np.ndarray]]:
    made = []
    for length in (7, 12, 4):
        ids_T = np.arange(20, 20 + length) * length % 300
        made.append({"input_ids": ids_T, "labels": np.where(np.arange(length) > length // 3, ids_T, -100)})
    return made


def logits(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (K, V) logits and K targets, of each row alone."""
    made = [
        (model(torch.tensor(row["input_ids"][None])).logits[0, :-1], torch.tensor(row["labels"][1:])) for row in rows()
    ]
    return torch.cat([out[target != -100] for out, target in made]), torch.cat([t[t != -100] for _, t in made])


def by_formula(model: Any) -> dict[str, torch.Tensor]:
    logits_K_V, targets_K = logits(model)
    p_K_V = logits_K_V.softmax(-1)
    p_K = p_K_V[torch.arange(len(targets_K)), targets_K]
    with torch.no_grad(), model.disable_adapter():
        q_K_V = logits(model)[0].softmax(-1)
    plain_K = -p_K.log()
    size_K = torch.log(torch.exp(logits_K_V).sum(-1))
    anchor_K = (q_K_V * (q_K_V.log() - p_K_V.log())).sum(-1)
    return {
        "plain": plain_K.mean(),
        "smooth": (0.9 * plain_K - 0.1 * p_K_V.log().mean(-1)).mean(),
        "dft": (p_K.detach() * plain_K).mean(),
        "z": (plain_K + 0.01 * size_K**2).mean(),
        "asft": (p_K.detach() * plain_K + 0.05 * anchor_K).mean(),
    }


OBJECTIVES = {
    "plain": Imitation(), "smooth": Imitation(smoothing=0.1), "dft": Imitation(dynamic=True),
    "z": Imitation(z_weight=0.01), "asft": Imitation(dynamic=True, anchor=0.05),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("flat", [True, False])
def test_losses_and_their_gradients_follow_the_formulas(model: Any, name: str, flat: bool) -> None:
    wanted = by_formula(model)[name]
    learned = [p for p in model.parameters() if p.requires_grad]
    of_formula = torch.autograd.grad(wanted, learned)
    if flat:
        assert isolate(model.get_base_model())
    batch = (Flat() if flat else Padder(0))(rows())
    found, told = OBJECTIVES[name](model, batch, None)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, learned), of_formula, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert float(told["loss/cross_entropy"]) == pytest.approx(float(by_formula(model)["plain"]), rel=1e-5)
    halved, _ = OBJECTIVES[name](model, batch, torch.tensor(2 * len(logits(model)[1])))
    assert float(halved) == pytest.approx(float(wanted) / 2, rel=1e-5)  # of a step with twice as many tokens
    assert float(OBJECTIVES[name](model.eval(), batch, None)[0]) == float(NextToken()(model, batch, None)[0])


def test_smoothing_is_that_of_transformers(model: Any) -> None:
    batch = Padder(0)(rows())
    theirs = LabelSmoother(0.1)(model(**batch), batch["labels"], shift_labels=True)
    assert float(Imitation(smoothing=0.1)(model, batch, None)[0]) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("flat", [True, False])
def test_noise_is_as_large_as_its_row_is_short(model: Any, flat: bool) -> None:
    batch, width = (Flat() if flat else Padder(0))(rows()), 64
    embeddings = model.get_input_embeddings()
    before = embeddings(batch["input_ids"])
    torch.manual_seed(0)
    with noisy(model, batch, 5.0):
        off = (embeddings(batch["input_ids"]) - before).detach().abs()
    assert torch.equal(embeddings(batch["input_ids"]), before)  # and no noise afterwards
    parts = off[0].split([7, 12, 4]) if flat else [off[0, :7], off[1, :12], off[2, :4]]
    for part, length in zip(parts, (7, 12, 4), strict=True):
        most = 5.0 / (length * width) ** 0.5
        assert 0.95 * most < float(part.max()) <= most * 1.0001
        assert float(part.mean()) == pytest.approx(most / 2, rel=0.15)  # uniform


def test_a_noisy_run_resumes_bit_for_bit_and_is_measured_without_noise(make_run: MakeRun) -> None:
    settings = ["stage.neftune=5", "stage.loss=dft", "stage.anchor=0.05", "stage.z_loss=0.001", "training.max_steps=6",
                "tuner.dropout=0.1", "training.eval_every=3", "watching.at_start=true"]  # fmt: skip
    whole, broken, plain = make_run("whole", *settings), make_run("broken", *settings), make_run("plain", *settings[4:])
    metrics = train(whole)
    with pytest.raises(Stopped):
        train(broken, stop_at=4)
    assert train(broken) == metrics and digest(broken / "adapter") == digest(whole / "adapter")
    train(plain)
    assert of_type(whole, "eval")[0]["loss"] == of_type(plain, "eval")[0]["loss"]
    first = of_type(whole, "step")[0]
    assert first["loss"] < first["metrics"]["loss/cross_entropy"] and metrics["loss/anchor"] > 0


@pytest.mark.parametrize(("settings", "code", "place"), [
    (["stage.loss=dft", "stage.label_smoothing=0.1"], "sft.smoothing", "stage.sft.label_smoothing"),
    (["stage.anchor=0.1", "tuner.kind=full"], "sft.anchor", "stage.sft.anchor"),
    (["stage.anchor=0.1", "tuner.pissa=true"], "sft.anchor", "stage.sft.anchor"),
])  # fmt: skip
def test_losses_that_cannot_be_computed_are_refused(settings: list[str], code: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        config.run(config.override(settings))
    assert (caught.value.code, caught.value.place) == (code, place)
