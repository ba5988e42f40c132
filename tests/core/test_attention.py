"""The choice of attention, and shifted sparse attention against masks written out head by head."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core import config
from core.data.pack import Flat, Padder
from core.errors import InputError
from core.models import s2, varlen
from core.models.blocks import expand
from core.models.loading import load_model
from core.models.varlen import isolate
from core.sections import Hardware, Model
from core.tuners.expand import Expand
from core.tuners.lora import Lora
from tests.core import tiny
from tests.core.helpers import of_type, train
from tests.core.test_pack import SMALL, model_of, random_rows

CPU = Hardware(device="cpu")


def naive(q: Any, k: Any, v: Any, rows: list[int], group: int, window: int | None = None) -> torch.Tensor:
    """Return S2 over rows end to end: one softmax a head and a token, over the tokens that it may see."""
    heads, per_group = q.shape[1], q.shape[1] // k.shape[1]
    out = torch.zeros(1, q.shape[2], heads, v.shape[-1])
    for head in range(heads):
        late = group // 2 if head >= (heads + 1) // 2 else 0
        for begin, end in pairwise(rows):
            for i in range(begin, end):
                seen = [
                    j
                    for j in range(begin, i + 1)
                    if (j - begin + late) // group == (i - begin + late) // group and (not window or i - j < window)
                ]
                keys, values = k[0, head // per_group, seen], v[0, head // per_group, seen]
                weights = (keys @ q[0, head, i] / math.sqrt(q.shape[-1])).softmax(0)
                out[0, i, head] = weights @ values
    return out


def qkv(heads: int, groups: int, tokens: int, batch: int = 1) -> list[torch.Tensor]:
    torch.manual_seed(heads + tokens)
    return [torch.randn(batch, count, tokens, 8, requires_grad=True) for count in (heads, groups, groups)]


def module() -> torch.nn.Module:
    return torch.nn.Identity().train()


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (8, 2), (4, 1), (6, 3), (3, 3), (3, 1)])
@pytest.mark.parametrize("rows", [[0, 32], [0, 29], [0, 3, 5, 25, 32]], ids=["whole", "ragged", "packed"])
def test_groups_and_shift_are_those_of_masks_written_out(heads: int, groups: int, rows: list[int]) -> None:
    given = qkv(heads, groups, rows[-1])
    bounds = torch.tensor(rows, dtype=torch.int32)
    found, _ = s2.attention(module(), *given, None, group=8, cu_seq_lens_q=bounds)
    wanted = naive(*given, rows, 8)
    assert torch.allclose(found, wanted, atol=1e-6)
    pull = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(made, given, pull) for made in (found, wanted)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_a_window_holds_within_the_groups() -> None:
    given = qkv(4, 2, 32)
    found, _ = s2.attention(module(), *given, None, group=8, sliding_window=3)
    assert torch.allclose(found, naive(*given, [0, 32], 8, window=3), atol=1e-6)


def test_rows_of_a_batch_that_end_in_padding_are_those_alone() -> None:
    given = qkv(4, 2, 24, batch=2)
    found, _ = s2.attention(module(), *given, None, group=8)
    for row, length in ((0, 24), (1, 17)):
        alone = naive(*(tensor[row : row + 1, :, :length] for tensor in given), [0, length], 8)
        assert torch.allclose(found[row : row + 1, :length], alone, atol=1e-6)


def test_the_middle_is_that_of_the_paper() -> None:
    """Its pseudocode (section 3.2): roll half of the heads, reshape into groups, attend, roll back."""
    q, k, v = qkv(4, 4, 32)
    group = 8
    halves = [torch.cat((t[:, :2], t[:, 2:].roll(-group // 2, 2)), 1) for t in (q, k, v)]
    split = [t.reshape(4, 32 // group, group, 8) for t in halves]
    made = torch.nn.functional.scaled_dot_product_attention(*split, is_causal=True).reshape(1, 4, 32, 8)
    wanted = torch.cat((made[:, :2], made[:, 2:].roll(group // 2, 2)), 1).transpose(1, 2)
    found, _ = s2.attention(module(), q, k, v, None, group=group)
    assert torch.allclose(found[:, :, :2], wanted[:, :, :2], atol=1e-6)
    assert torch.allclose(found[:, 4:, 2:], wanted[:, 4:, 2:], atol=1e-6)
    assert not torch.allclose(found[:, :4, 2:], wanted[:, :4, 2:], atol=1e-3), "there the beginning sees the end"


def test_answers_see_everything_and_dropout_drops() -> None:
    given = qkv(4, 2, 32)
    full, _ = varlen.attention(module(), *given, None)
    assert torch.equal(s2.attention(module().eval(), *given, None, group=8)[0], full)
    ones = [given[0], given[1], torch.ones(1, 2, 2000, 8)]
    ones[:2] = [torch.zeros(1, count, 2000, 8) for count in (4, 2)]
    dropped, _ = s2.attention(module(), *ones, None, group=8, dropout=0.5)
    assert dropped.std() > 0.2 and dropped.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text", "gpt_neox"])
def test_rows_end_to_end_learn_as_padded_ones(kind: str) -> None:
    rows = random_rows(5)
    batch = [rows[index] for index in range(len(rows))]

    def loss(group: int, collator: Any = None) -> float:
        model = model_of(kind)
        assert not collator or isolate(model)
        if group:
            s2.shift(model, group)
        return model.train()(**(collator or Padder(0))(batch), use_cache=False).loss.item()

    assert loss(8) == pytest.approx(loss(8, Flat()), abs=1e-5) and abs(loss(8) - loss(0)) > 1e-3
    # rows that are shorter than half a group are not cut
    assert loss(2 * 60) == pytest.approx(loss(0), abs=1e-5) == pytest.approx(loss(2 * 60, Flat()), abs=1e-5)


@pytest.mark.parametrize(("kind", "works"), [
    ("deepseek_v3", True), ("jamba", True), ("mixtral", True), ("cohere2", True), ("stablelm", True),
    ("gemma2", False), ("gpt_oss", False), ("bloom", False), ("mamba", False), ("falcon", False),
])  # fmt: skip
def test_models_whose_attention_can_be_replaced_are_shown_to(kind: str, works: bool) -> None:
    model = tiny.tiny_model(kind)
    before = model.config._attn_implementation
    if works:
        s2.shift(model, 8)
        model.train()(**tiny.tiny_batch()).loss.backward()
    else:
        with pytest.raises(InputError) as caught:
            s2.shift(model, 8)
        assert (caught.value.code, caught.value.place) == ("s2.model", "training.s2")
        assert model.config._attn_implementation == before


def test_a_model_with_few_tokens_is_tried_as_well() -> None:
    made = AutoConfig.for_model("llama", **SMALL | {"vocab_size": 5})
    model = AutoModelForCausalLM.from_config(made, attn_implementation="sdpa")
    assert isolate(model)
    s2.shift(model, 4)
    assert model.config._attn_implementation == s2.NAME
    assert len(expand(AutoModelForCausalLM.from_config(made), 1)) > 0


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("tuner", [Expand(blocks=1), Lora(extra=["layers.1"]), Lora(extra=["self_attn"])],
                         ids=["expand", "layer", "attention"])  # fmt: skip
def test_copies_of_blocks_attend_as_their_originals(
    tuner: Expand | Lora, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: Any = tuner.attach(model_of(kind), tmp_path)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    assert isolate(tuned)
    rows = random_rows(2)
    batch = Flat()([rows[0], rows[1]])
    other, first = {**batch, "input_ids": batch["input_ids"].clone()}, int(batch["cu_seq_lens_q"][1])
    other["input_ids"][0, :first] += 1
    with torch.no_grad():
        before, after = (tuned.eval()(**each, use_cache=False).logits[0] for each in (batch, other))
    assert torch.equal(before[first:], after[first:]) and not torch.allclose(before[:first], after[:first])

    shifted: list[torch.nn.Module] = []

    def watched(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        shifted.append(module)
        return varlen.attention(module, *args, **{key: kwargs[key] for key in kwargs if key != "group"})

    monkeypatch.setattr(s2, "attention", watched)
    s2.shift(tuned, 8)
    shifted.clear()
    tuned.train()(**batch, use_cache=False)
    assert len(shifted) == tuned.config.num_hidden_layers


def test_a_chunked_model_is_not_shifted() -> None:
    small = {**SMALL, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama4_text", **small, attention_chunk_size=16))
    with pytest.raises(InputError) as caught:
        s2.shift(model, 8)
    assert caught.value.code == "s2.model"


def test_a_group_is_an_even_number_of_tokens() -> None:
    assert [s2.group_length(8192, 0.25), s2.group_length(100, 0.25), s2.group_length(10, 0.1)] == [2048, 0, 0]
    assert s2.group_length(60, 0.1) == 6 and s2.cuts([0, 5, 14], 4, 2) == [0, 2, 5, 7, 11, 14]


def test_a_run_learns_with_s2_or_says_why_not(make_run: Callable[..., Path]) -> None:
    losses = {}
    for name, settings in {"full": (), "s2": ("training.s2=0.25",), "odd": ("training.s2=0.3",)}.items():
        folder = make_run(name, "data.cutoff=32", "tuner.kind=full", "optimizer.learning_rate=0.001", *settings)
        train(folder)
        losses[name] = [event["loss"] for event in of_type(folder, "step")]
        told = [event["code"] for event in of_type(folder, "warning") if event["code"].startswith("s2")]
        assert told == (["s2.length"] if name == "odd" else [])
    assert losses["odd"] == losses["full"] != losses["s2"] and losses["s2"][-1] < losses["s2"][0]


def test_what_does_not_go_together_is_refused_before_the_start() -> None:
    for settings, code, place in (
        (["training.s2=0.25", "model.attention=eager"], "s2.attention", "training.s2"),
        (["model.attention=flash_attention_3", "model.precision=fp32"], "attention.precision", "model.precision"),
        (["model.attention=kernels-community/flash-attn"], "config.literal_error", "model.attention"),
    ):
        with pytest.raises(InputError) as caught:
            config.resolve(config.override(settings))
        assert (caught.value.code, caught.value.place) == (code, place)


def test_what_this_machine_can_not_compute_is_refused(tiny_model: Path) -> None:
    def loaded(attention: str, training: bool) -> Any:
        return load_model(Model(path=str(tiny_model), attention=attention), tiny_model, CPU, training=training)  # type: ignore[arg-type]

    for attention in ("flash_attention_2", "flash_attention_3"):
        with pytest.raises(InputError) as caught:
            loaded(attention, False)
        assert (caught.value.code, caught.value.place) == ("model.attention", "model.attention")
    with pytest.raises(InputError) as caught:
        loaded("flex_attention", True)
    assert (caught.value.code, caught.value.place) == ("attention.flex", "model.attention")
    assert loaded("flex_attention", False).config._attn_implementation == "flex_attention"
    for attention in ("sdpa", "eager"):
        assert loaded(attention, True).config._attn_implementation == attention


@pytest.mark.parametrize("asked", ["eager", "flex_attention", "kernels-community__flash-attn"])
@pytest.mark.parametrize(("kind", "found"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_auto_is_what_the_model_can_and_not_what_its_config_asks_for(
    tmp_path: Path, tiny_model: Path, kind: str, found: str, asked: str
) -> None:
    """Also for a model that sdpa can't compute: gemma2 caps its scores."""
    model = tiny.tiny_model(kind)
    model.save_pretrained(tmp_path)
    told = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(told.replace("{", f'{{"_attn_implementation": "{asked}",', 1))
    (tmp_path / "tokenizer.json").write_text((tiny_model / "tokenizer.json").read_text())
    loaded = load_model(Model(path=str(tmp_path)), tmp_path, CPU, training=True)
    assert loaded.config._attn_implementation == found
