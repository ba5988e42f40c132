"""Rows laid end to end: kept apart, packed full, mixed by shares, kept on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from core.data import batch, mix
from core.data import kept as cached
from core.data.encode import Encoded
from core.data.pack import Flat, Packed, Padder, bins, packed
from core.data.tokens import Tokenizer, _prepare
from core.errors import InputError
from core.models.varlen import NAME, isolate, windows_told
from core.sections import Data
from tests.conftest import ROOT, launch_worker, write_rows
from tests.core.helpers import train

SMALL: dict[str, Any] = dict(
    vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256,
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen3": {**SMALL, "head_dim": 8},
    "mistral": {**SMALL, "sliding_window": 7},
    "gemma3_text": {
        **SMALL,
        "head_dim": 8,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neox": {k: v for k, v in SMALL.items() if k != "num_key_value_heads"},
    "olmo2": SMALL,
}  # fmt: skip


def random_rows(count: int, longest: int = 60, seed: int = 0) -> Encoded:
    chance = np.random.default_rng(seed)
    lengths = chance.integers(2, longest, count)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    learned = chance.random(starts[-1]) < 0.5
    learned[starts[:-1]] = False
    learned[starts[1:] - 1] = True
    return Encoded(chance.integers(3, 300, starts[-1]).astype(np.int32), learned, starts, np.arange(len(starts) - 1))


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **FAMILIES[kind])
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


@pytest.mark.parametrize("kind", FAMILIES)
def test_packed_loss_and_gradient_are_those_of_the_rows_alone(kind: str) -> None:
    model, rows = model_of(kind), random_rows(9)
    targets = int(rows.learned_N.sum())
    alone = 0.0
    for index in range(len(rows)):
        one = Padder(0)([rows[index]])
        loss = model(**one, use_cache=False).loss * (one["labels"] != -100).sum() / targets
        loss.backward()
        alone += loss.item()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert isolate(model) and model.config._attn_implementation == NAME
    together = model(**Flat()([[rows[i] for i in range(len(rows))]]), use_cache=False).loss
    together.backward()
    assert together.item() == pytest.approx(alone, abs=1e-5)
    for before, parameter in zip(gradients, (p for p in model.parameters() if p.grad is not None), strict=True):
        assert torch.allclose(before, parameter.grad, atol=1e-5)  # type: ignore[arg-type]


def test_a_model_that_mixes_rows_is_left_as_it_is() -> None:
    """GPT-2 counts learned positions and obeys position_ids; a state-space model has no positions at all."""
    config = AutoConfig.for_model("mamba", vocab_size=320, hidden_size=32, state_size=4, num_hidden_layers=1)
    mamba = AutoModelForCausalLM.from_config(config)
    assert not isolate(mamba)


def test_attention_that_short_rows_do_not_show_is_known_by_the_config() -> None:
    """Rows of a few tokens fit into one chunk and into any window: that they come out right proves nothing of these."""
    small = {**SMALL, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2, "pad_token_id": 0}
    chunked = AutoConfig.for_model("llama4_text", **small, attention_chunk_size=16)
    model = AutoModelForCausalLM.from_config(chunked, attn_implementation="sdpa", dtype=torch.float32)
    assert not isolate(model) and model.config._attn_implementation == "sdpa"
    mistral = model_of("mistral")
    assert windows_told(mistral, [7, 7]) and not windows_told(mistral, [None, None])


def test_whole_rows_only() -> None:
    model = model_of("llama")
    assert isolate(model)
    with pytest.raises(ValueError, match="cache"):
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, do_sample=False)


def test_bins_hold_every_row_once_and_are_full() -> None:
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(4.5, 0.8, 20_000), 8, 1024).astype(int)
    groups = bins(lengths, 1024)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    sums = np.array([lengths[group].sum() for group in groups])
    assert sums.max() <= 1024 and sums.mean() / 1024 >= 0.99
    assert bins([], 8) == [] and bins([8, 8], 8) == [[0], [1]]


def test_packs_are_items_of_a_dataset() -> None:
    rows = random_rows(20)
    made = packed(rows, 64)
    assert isinstance(made, Packed) and made.lengths_B.max() <= 64 and made.lengths_B.sum() == rows.lengths_B.sum()
    batch_ = Flat()([made[0], made[1]])
    assert batch_["input_ids"].shape == (1, made.lengths_B[:2].sum())
    starts = batch_["cu_seq_lens_q"][:-1].long()
    assert (batch_["position_ids"][0, starts] == 0).all() and (batch_["labels"][0, starts] == -100).all()


def test_a_packed_run_teaches_as_an_unpacked_one(make_run: Callable[..., Path]) -> None:
    """One step over the same rows: the loss is counted by token, so how they lie in batches changes nothing."""
    losses = []
    for name, more in {
        "whole": ("training.batch_size=32",),
        "parts": ("training.batch_size=8", "training.accumulation=4"),
        "packed": ("data.packing=always", "training.batch_size=64"),
    }.items():
        settings = ("data.eval_share=0", "data.max_rows=32", "training.max_steps=1", "training.eval_every=1", *more)
        folder = make_run(name, *settings)
        losses.append(train(folder)["loss"])
    assert max(losses) - min(losses) <= 1e-5


@pytest.mark.parametrize("strategy", ["interleave_under", "interleave_over", "interleave_once"])
def test_mixtures_are_those_of_datasets(strategy: str) -> None:
    sets = [[f"{name}{i}" for i in range(count)] for name, count in (("a", 50), ("b", 10))]
    flat = [row for rows in sets for row in rows]
    mixed = [flat[at] for at in mix.order([50, 10], strategy, [0.7, 0.3], seed=3)]
    expected: Any = datasets.interleave_datasets(
        [datasets.Dataset.from_dict({"x": rows}) for rows in sets], probabilities=[0.7, 0.3], seed=3,
        stopping_strategy=mix.STOPPING[strategy],
    )  # fmt: skip
    assert mixed == list(expected["x"])


def test_shares_are_kept() -> None:
    drawn = mix.order([50_000, 50_000], "interleave_under", [0.8, 0.2], seed=0)
    assert np.mean(drawn < 50_000) == pytest.approx(0.8, abs=0.01)


def test_encoded_sets_are_kept_and_reused(tiny_data: Path, tiny_model: Path, workspace: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = Data(folder=str(tiny_data), train=["orders"], eval_share=0)
    first = batch.load(data, workspace, tokenizer, 0)
    (entry,) = cached.entries(workspace)
    said: list[int] = []
    again = batch.load(data, workspace, tokenizer, 0, advance=said.append)
    assert not said and np.array_equal(first.train.ids_N, again.train.ids_N) and first.counts == again.counts
    batch.load(data.model_copy(update={"cutoff": 30}), workspace, tokenizer, 0)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|user|>", "<|system|>")
    batch.load(data, workspace, tokenizer, 0, train_on_prompt=True)
    assert len(cached.entries(workspace)) == 3 and entry.bytes > 0
    path = cached.folder(workspace) / f"{entry.name}.arrow"
    path.write_bytes(path.read_bytes()[:100])  # cut off: made anew
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert np.array_equal(batch.load(data, workspace, tokenizer, 0).train.ids_N, first.train.ids_N)
    assert cached.clear(workspace) > 0 and cached.entries(workspace) == []


def fill(model: Path, data: Data, workspace: Path) -> bytes:
    """Do what a run does with its data, in a process of its own; return the ids."""
    return batch.load(data, workspace, AutoTokenizer.from_pretrained(model), 0).train.ids_N.tobytes()


def test_two_runs_may_fill_the_cache_at_once(tiny_data: Path, tiny_model: Path, workspace: Path) -> None:
    data = Data(folder=str(tiny_data), train=["orders", "chats"], eval_share=0)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = list(pool.map(fill, *zip(*[(tiny_model, data, workspace)] * 4, strict=True)))
    assert len(made) == 4 and len(set(made)) == 1 and len(cached.entries(workspace)) == 2


def test_tiktoken_gives_the_ids_of_the_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "demo" / "model")
    fast = _prepare(tokenizer)
    assert fast is not None and not fast.doubtful_V.any()
    chance = np.random.default_rng(0)
    parts = ["a", "B", " ", "  ", "\n", "'s", "'S", "12", "é", "ß", "多", "😀", "\t", "!", "<|end|>", "٣", "Ⅷ", "½",
             "\u00a0", "ǅ", "'", "I'm", "\r\n", "_", "order", " for", "\u200b", "e\u0301"]  # fmt: skip
    texts = ["".join(chance.choice(parts, chance.integers(0, 30))) for _ in range(5000)]
    slow = Tokenizer(tokenizer)._slow(texts)
    for text, (ids, begin, end) in zip(texts, slow, strict=True):
        (made,) = fast.encode([text])
        assert made is not None and made[0].tolist() == ids.tolist(), text
        covered = [text[b:e].strip() for b, e in zip(made[1], made[2], strict=True)]
        assert covered == [text[b:e].strip() for b, e in zip(begin, end, strict=True)], text


def test_a_token_that_the_merges_do_not_reach_is_left_to_the_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    # "ab" and "bc" merge first, so that the word abc never becomes the token that ("ab", "c") would make
    for token in ("bc", "ab", "abc"):
        spec["model"]["vocab"].setdefault(token, len(spec["model"]["vocab"]) + 5)
    spec["model"]["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"]]
    spec["model"]["vocab"] = {
        t: i for t, i in spec["model"]["vocab"].items() if len(t) == 1 or t in ("bc", "ab", "abc")
    }
    spec["added_tokens"] = []
    spec["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    from transformers import PreTrainedTokenizerFast

    odd = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="!")
    fast = _prepare(odd)
    assert fast is not None and fast.encode(["abc"]) == [None]
    assert odd.convert_ids_to_tokens(odd("abc")["input_ids"]) == ["a", "bc"]


def test_a_mixture_is_the_same_after_a_kill(make_run: Callable[..., Path], tiny_data: Path) -> None:
    settings = ("data.train=[orders,chats]", "data.mix=interleave_over", "data.shares=[0.5,0.5]", "data.packing=always",
                "data.cutoff=128", "training.batch_size=2", "training.max_steps=12", "saving.every=3")  # fmt: skip
    whole = make_run("whole", *settings)
    expected = train(whole)["loss"]
    broken = make_run("broken", *settings)
    worker = launch_worker(broken)
    while not list((broken / "checkpoints").glob("*6*")) and worker.poll() is None:
        time.sleep(0.01)
    worker.kill()
    worker.wait()
    assert train(broken)["loss"] == expected


def test_rows_of_files_in_a_folder_are_one_set(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "data"
    (folder / "parts").mkdir(parents=True)
    for part in range(3):
        write_rows(folder / "parts" / f"{part}.jsonl", [{"instruction": f"{part}", "output": "red"}] * 4)
    (folder / "dataset_info.json").write_text(json.dumps({"all": {"file_name": "parts"}}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = Data(folder=str(folder), train=["all"], eval_share=0)
    assert len(batch.load(data, tmp_path, tokenizer, 0).train) == 12


def test_a_stream_teaches_and_resumes_exactly(make_run: Callable[..., Path]) -> None:
    settings = ("data.streaming=true", "data.train=[orders,chats]", "data.mix=interleave_over",
                "data.shares=[0.7,0.3]", "data.buffer=16",
                "training.max_steps=12", "saving.every=3")  # fmt: skip
    whole = make_run("whole", *settings)
    expected = train(whole)["loss"]
    broken = make_run("broken", *settings)
    worker = launch_worker(broken)
    while not list((broken / "checkpoints").glob("*6*")) and worker.poll() is None:
        time.sleep(0.01)
    worker.kill()
    worker.wait()
    assert train(broken)["loss"] == expected


@pytest.mark.parametrize("strategy", ["concat", *mix.STOPPING])
def test_streams_mix_as_sets_do(tmp_path: Path, tiny_model: Path, strategy: str) -> None:
    sets = ("abcdef", "AB")
    for name, letters in zip(("small", "large"), sets, strict=True):
        write_rows(tmp_path / f"{name}.jsonl", [{"instruction": letter, "output": letter} for letter in letters])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = Data(folder=str(tmp_path), train=["small.jsonl", "large.jsonl"], streaming=True, mix=strategy, buffer=1)  # type: ignore[arg-type]
    stream: Any = batch.load(data, tmp_path, tokenizer, 0).train
    oracle: Any = [datasets.Dataset.from_dict({"row": list(letters)}).to_iterable_dataset() for letters in sets]
    if strategy == "concat":
        mixed = datasets.concatenate_datasets(oracle)
    else:
        mixed = datasets.interleave_datasets(oracle, stopping_strategy=mix.STOPPING[strategy])
    wanted = [row["row"] for row in mixed] * 2  # it begins anew
    found = [tokenizer.decode(row["labels"][row["labels"] >= 0])[0] for row, _ in zip(stream, wanted, strict=False)]
    assert found == wanted


@pytest.mark.parametrize("strategy", ["concat", *mix.STOPPING])
def test_a_set_without_anything_to_learn_is_no_part_of_a_stream(
    tmp_path: Path, tiny_model: Path, strategy: str
) -> None:
    write_rows(tmp_path / "good.jsonl", [{"instruction": "a", "output": "b"}] * 5)
    write_rows(tmp_path / "empty.jsonl", [{"instruction": "a", "output": ""}] * 5)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = Data(folder=str(tmp_path), train=["good.jsonl", "empty.jsonl"], streaming=True, mix=strategy, buffer=1)  # type: ignore[arg-type]
    stream: Any = batch.load(data, tmp_path, tokenizer, 0).train
    with pytest.raises(InputError) as caught:
        list(zip(stream, range(20), strict=False))
    assert caught.value.code == "data.no_target"


def test_a_packed_stream_fills_its_places(tiny_data: Path, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = Data(folder=str(tiny_data), train=["orders"], streaming=True, packing="always", cutoff=128, buffer=400)
    stream: Any = batch.load(data, tiny_data, tokenizer, 0).train
    packs = [pack for pack, _ in zip(stream, range(50), strict=False)]
    again = [pack for pack, _ in zip(stream, range(50), strict=False)]
    filled = [sum(len(row["input_ids"]) for row in pack) for pack in packs]
    assert max(filled) <= 128 and np.mean(filled) > 0.8 * 128
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for p, q in zip(packs, again, strict=True)
               for a, b in zip(p, q, strict=True))  # fmt: skip


def test_a_run_says_nothing_that_nobody_asked(make_run: Callable[..., Path]) -> None:
    folder = make_run("quiet", "training.max_steps=3")
    assert launch_worker(folder).wait(120) == 0
    log = (folder / "console.log").read_text()
    assert "Could not" not in log and log.count("\n") < 30


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, tiny_model: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"instruction": "red", "output": "pen"}] * 600)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def meddle(done: int) -> None:
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write('{"instruction": "blue", "output": "cup"}\n')

    with pytest.raises(InputError) as caught:
        batch.load(Data(folder=str(tmp_path), train=["a.jsonl"]), tmp_path, tokenizer, 0, advance=meddle)
    assert caught.value.code == "data.moving" and cached.entries(tmp_path) == []


def test_a_stream_of_broken_rows_ends_with_a_word(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": 1}\n' * 3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = Data(folder=str(tmp_path), train=["a.jsonl"], streaming=True, skip_broken=True)
    with pytest.raises(InputError) as caught:
        batch.load(data, tmp_path, tokenizer, 0)
    assert caught.value.code == "data.all_broken" and caught.value.params["count"] == 3
