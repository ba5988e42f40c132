"""Logits in parts: the same losses and gradients as at once, of every head; what follows a head is not left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from core.models import memory, tables
from core.training import chunks, objective
from tests.core.test_memory import model_of, run_of, shapes_of

WIDTHS = (5, 9)
"""Of two rows, in one line; parts of 3 tokens cut both."""


def batch(words: int) -> dict[str, Any]:
    torch.manual_seed(1)
    ids = torch.randint(0, words, (1, sum(WIDTHS)))
    labels = ids.clone()
    labels[0, :2] = labels[0, 5:7] = -100
    positions = torch.cat([torch.arange(n) for n in WIDTHS])[None]
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def made(model: Any, monkeypatch: pytest.MonkeyPatch, most: int) -> tuple[objective.Said, list[torch.Tensor]]:
    monkeypatch.setattr(chunks, "CHUNK", most)
    model.zero_grad()
    torch.manual_seed(3)
    said = objective.say(model, batch(model.config.vocab_size))
    (-said.logps_K.sum()).backward()
    return said, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("way", ["full", "lora", "bf16"])
def test_parts_say_what_the_whole_says(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = model_of(kind).train()
    if way == "lora":
        head = ["lm_head"] if kind != "gpt2" else None
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", modules_to_save=head, lora_dropout=0))
    words = model.config.vocab_size
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
        whole, wanted = made(model, monkeypatch, 1 << 30)
        seen: list[int] = []
        hook = model.get_base_model().lm_head if way == "lora" else model.lm_head
        forward = hook.forward
        monkeypatch.setattr(hook, "forward", lambda hidden: seen.append(len(hidden)) or forward(hidden))
        said, found = made(model, monkeypatch, 3 * words)
    assert max(seen[1:]) == 3 and sum(seen[1:]) >= len(said.logps_K)  # the first is of one token: is it the last layer?
    torch.testing.assert_close(said.logps_K, whole.logps_K, rtol=0, atol=1e-6)
    assert len(found) == len(wanted) > 2
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= (1e-2 if way == "bf16" else 1e-5) * other.norm()


@pytest.mark.parametrize(("kind", "key"), [
    ("gemma3_text", "final_logit_softcapping"), ("granite", "logits_scaling"), ("cohere", "logit_scale"),
])  # fmt: skip
def test_what_follows_the_head_is_not_left_out(kind: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = model_of(kind)
    setattr(model.config, key, 0.5)
    if kind != "gemma3_text":
        setattr(model, key, 0.5)
    whole, wanted = made(model, monkeypatch, 1 << 30)
    forward, seen = model.lm_head.forward, list[int]()
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: seen.append(len(hidden)) or forward(hidden))
    said, found = made(model, monkeypatch, 3 * model.config.vocab_size)
    assert max(seen[1:]) == 3
    torch.testing.assert_close(said.logps_K, whole.logps_K, rtol=0, atol=1e-6)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_logits_are_made_at_once_where_nobody_knows_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = model_of("llama")
    whole, _ = made(model, monkeypatch, 1 << 30)
    model.register_forward_hook(lambda _, __, out: setattr(out, "logits", 2 * out.logits))
    monkeypatch.setattr(chunks, "CHUNK", 3 * model.config.vocab_size)
    assert chunks.wanted(model, batch(model.config.vocab_size)["labels"][:, 1:]) is None
    assert not torch.allclose(objective.say(model, batch(model.config.vocab_size)).logps_K, whole.logps_K)


def test_chance_goes_on_as_if_nobody_had_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = model_of("gpt2").train()  # with dropout
    monkeypatch.setattr(chunks, "CHUNK", 3 * model.config.vocab_size)
    torch.manual_seed(5)
    first = objective.say(model, batch(model.config.vocab_size)).logps_K
    torch.manual_seed(5)
    again = objective.say(model, batch(model.config.vocab_size)).logps_K
    assert torch.equal(first, again)  # a resumed run looks once more


def test_the_planner_knows(tmp_path: Any) -> None:
    def logits(kind: str, *settings: str) -> int:
        run = run_of("data.cutoff=262144", "training.batch_size=64", *settings)
        return memory.plan(run, shapes_of(model_of(kind), tmp_path / kind), "cpu").logits

    assert logits("llama") == memory.LOGIT_BYTES * tables.CHUNK
    assert logits("llama", "stage.z_loss=0.1") > 2 * logits("llama")
    assert logits("granite") == logits("llama")
