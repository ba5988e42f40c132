"""Tokens and labels against truth that is computed here, without the engine's own functions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.data.batch import fingerprint, load, split
from core.data.describe import find
from core.data.encode import IGNORED, Counts, Encoded, Encoder
from core.data.pack import Order, Padder
from core.data.render import Renderer
from core.data.rows import examples
from core.data.tokens import Tokenizer
from core.errors import InputError
from core.formats import Row
from core.sections import Data
from tests.conftest import ROOT, TEMPLATE
from tests.core.test_data import talk

REAL = ROOT.parent / "shared" / "data" / "llamafactory"
SPECIAL = re.compile(r"(<\|\w+\|>)")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def unmarked(tiny_model: Path) -> PreTrainedTokenizerBase:
    """The same tokenizer; its template tells no answers apart."""
    plain = AutoTokenizer.from_pretrained(tiny_model)
    plain.chat_template = re.sub(r"\{% (end)?generation %\}", "", TEMPLATE)
    return plain


def rows_of(conversations: list[list[dict[str, Any]]]) -> list[Row]:
    """Put conversations into standard form."""
    made = []
    for messages in conversations:
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        turns = messages[bool(system) :]
        made.append(Row(turns[:-1], turns[-1:], system))
    return made


def encode(
    conversations: list[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerBase, cutoff: int, **options: Any
) -> tuple[Encoded, Counts]:
    encoder = Encoder(Renderer(tokenizer), Tokenizer(tokenizer), cutoff, **options)
    return encoder.encode(rows_of(conversations)), encoder.counts


def by_hand(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, tails: bool = False
) -> tuple[list[int], list[int]]:
    """Write the conversation out piece by piece: special tokens are cut points for any tokenizer.

    tails: the line break after an answer is learned, too. It is a part of what the template writes for the turn; only
    generation marks can leave it out.
    """
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        answer = message["role"] == "assistant" and not message["content"].isspace()  # blanks teach nothing
        head = tokenizer.encode(f"<|{message['role']}|>\n", add_special_tokens=False)
        body = tokenizer.encode(f"{message['content']}<|end|>", add_special_tokens=False)
        tail = tokenizer.encode("\n", add_special_tokens=False)
        ids += head + body + tail
        labels += [IGNORED] * len(head) + (body if answer else [IGNORED] * len(body))
        labels += tail if answer and tails else [IGNORED] * len(tail)
    return ids, labels


CONVERSATIONS = [
    talk("red pen", "pen"),
    [{"role": "system", "content": "be red"}, *talk("two pens", "one, two", "three", "no: Ω ≠ 😀")],
    talk("a", " begins with a blank"),
    talk("a", "ends with blanks  "),
    talk("a\n\n", "多行\nцвет\t{}"),
    talk("a", "one", "b", "   ", "c", "three"),
]


@pytest.mark.parametrize("which", ["tokenizer", "unmarked"])
def test_labels_are_the_answers_and_their_end_token(which: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(which)
    rows, counts = encode(CONVERSATIONS, tokenizer, 1000)
    assert (len(rows), counts.cut, counts.dropped) == (len(CONVERSATIONS), 0, 0)
    for row, messages in zip(map(rows.__getitem__, range(len(rows))), CONVERSATIONS, strict=True):
        ids, labels = by_hand(tokenizer, messages, tails=which == "unmarked")
        assert row["input_ids"].tolist() == ids == tokenizer.apply_chat_template(messages, return_dict=False)
        assert row["labels"].tolist() == labels
        targets = [label for label in labels if label != IGNORED]
        assert tokenizer.eos_token_id in targets[-2:]
        tail = "\n" if which == "unmarked" else ""
        assert tokenizer.decode(targets, skip_special_tokens=True) == "".join(
            m["content"] + tail for m in messages if m["role"] == "assistant" and m["content"].strip()
        )


def test_cutoff_keeps_the_beginning_and_rows_without_targets_are_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    long, short, mute = talk("pen", "cup " * 50), talk("pen", "cup"), talk("pen", "")
    late = talk("cup " * 60, "pen")
    whole, _ = by_hand(tokenizer, long)
    rows, counts = encode([long, short, mute, late], tokenizer, 20)
    assert (len(rows), counts.cut, counts.dropped) == (2, 2, 2)
    assert rows[0]["input_ids"].tolist() == whole[:20] and rows[1]["input_ids"].tolist() == by_hand(tokenizer, short)[0]
    everything, _ = encode([short], tokenizer, 20, train_on_prompt=True)
    # nothing foretells the first token
    assert everything[0]["labels"].tolist() == [IGNORED, *everything[0]["input_ids"].tolist()[1:]]


def test_answers_that_differ_beyond_the_cutoff_are_not_compared(tokenizer: PreTrainedTokenizerBase) -> None:
    asked, (one, other) = talk("pen", "")[0], ({"role": "assistant", "content": "cup " * 30 + end} for end in "AB")
    for cutoff, kept in ((20, 0), (200, 2)):
        encoder = Encoder(Renderer(tokenizer), Tokenizer(tokenizer), cutoff, kind="ranking")
        assert len(encoder.encode([Row([asked], [one, other])])) == kept
        assert encoder.counts.dropped == (not kept)


def test_templates_that_refuse_or_rewrite_are_told(unmarked: PreTrainedTokenizerBase) -> None:
    unmarked.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(InputError) as caught:
        encode([talk("a", "b")], unmarked, 100)
    assert caught.value.code == "data.template" and caught.value.params["what"] == "only one turn"
    unmarked.chat_template = "{{ 'asked' if add_generation_prompt else 'told' }}"
    with pytest.raises(InputError) as caught:
        encode([talk("a", "b")], unmarked, 100)
    assert caught.value.code == "data.template_prefix"


def test_answers_are_learned_apart_where_the_template_rewrites_earlier_ones(unmarked: PreTrainedTokenizerBase) -> None:
    """As Qwen3 does: the last answer has (empty) reasoning before it, earlier ones have not."""
    unmarked.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' and loop.last %}{{ 'hm ' }}"
        "{% endif %}{{ m.content + '<|end|>\n' }}{% endfor %}{{ '<|assistant|>' if add_generation_prompt else '' }}"
    )
    rows, counts = encode([talk("a", "one", "b", "two")], unmarked, 100)
    texts = [unmarked.decode(rows[i]["input_ids"]) for i in range(len(rows))]
    first = "<|user|>a<|end|>\n<|assistant|>"
    assert texts == [first + "hm one<|end|>\n", first + "one<|end|>\n<|user|>b<|end|>\n<|assistant|>hm two<|end|>\n"]
    targets = [[label for label in rows[i]["labels"] if label != IGNORED] for i in range(2)]
    assert unmarked.batch_decode(targets) == ["hm one<|end|>\n", "hm two<|end|>\n"] and counts.dropped == 0


def test_load_splits_by_seed_limits_rows_and_sums_files(tiny_data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = Data(folder=str(tiny_data), train=["orders", "chats"], eval_share=0.25)
    once, again, other = (load(data, tiny_data, tokenizer, seed) for seed in (1, 1, 2))
    assert (len(once.train), once.held_out, once.counts.rows) == (36, 12, 48)
    assert once.counts.repeated == (40 - 27) + (8 - 3)  # what tiny_data has of different rows
    held, same, others = (lessons.eval[""].ids_N for lessons in (once, again, other))
    assert np.array_equal(held, same) and not np.array_equal(held, others)
    assert once.fingerprint == again.fingerprint
    few = load(data.model_copy(update={"max_rows": 3, "eval": ["chats", "orders"]}), tiny_data, tokenizer, 1)
    assert (len(few.train), {name: len(rows) for name, rows in few.eval.items()}) == (6, {"chats": 3, "orders": 3})
    with pytest.raises(InputError) as caught:
        load(data.model_copy(update={"cutoff": 8}), tiny_data, tokenizer, 1)
    assert caught.value.code == "data.no_target"


def test_split_leaves_a_row_to_learn(tokenizer: PreTrainedTokenizerBase) -> None:
    rows, _ = encode([talk("a", "b"), talk("c", "d")], tokenizer, 100)
    assert [len(part) for part in split(rows, 0.01, 0)] == [1, 1]
    assert [len(part) for part in split(rows, 0, 0)] == [2, 0]
    assert [len(part) for part in split(rows.select([0]), 0.5, 0)] == [1, 0]


def test_fingerprint_follows_content_and_names(tmp_path: Path) -> None:
    def sum_of(content: str, columns: dict[str, Any]) -> str:
        (tmp_path / "a.jsonl").write_text(content)
        (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "columns": columns}}))
        return fingerprint(find(tmp_path, "a", ""), tmp_path, "")

    assert len({sum_of("x", {}), sum_of("y", {}), sum_of("x", {"prompt": "q"}), sum_of("x", {})}) == 3


def test_padder_pads_at_the_end() -> None:
    rows = [{"input_ids": np.array(ids, np.int32), "labels": np.array(ids, np.int32)} for ids in ([5, 6, 7], [8])]
    batch = Padder(0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [1 + i % 17 for i in range(200)]
    for by_length in (True, False):
        order = Order(lengths, 8, 3, by_length=by_length)
        first = list(order)
        torch.manual_seed(99)
        assert list(order) == first and sorted(first) == list(range(200))
        order.set_epoch(1)
        assert list(order) != first
        batches = [[lengths[i] for i in first[b : b + 8]] for b in range(0, 200, 8)]
        padding = sum(max(batch) * len(batch) - sum(batch) for batch in batches)
        assert (padding < 500) == by_length


@pytest.mark.skipif(not REAL.is_dir(), reason="the data of LLaMA-Factory is not beside this repository")
@pytest.mark.parametrize("name", ["alpaca_en_demo", "identity"])
def test_real_data_encodes(name: str, tokenizer: PreTrainedTokenizerBase, unmarked: PreTrainedTokenizerBase) -> None:
    rows = [row.messages() for row in examples(find(REAL, name, "data.train"), REAL, "data.train")]
    marked, prefixed = (encode(rows, t, 2048)[0] for t in (tokenizer, unmarked))
    assert len(marked) == len(json.loads((REAL / f"{name}.json").read_text(encoding="utf-8")))
    assert np.array_equal(marked.ids_N, prefixed.ids_N)
    assert (prefixed.learned_N >= marked.learned_N).all()  # and the line breaks behind answers
    ids, labels = by_hand(tokenizer, rows[-1])
    assert marked[len(marked) - 1]["input_ids"].tolist() == ids[:2048]
    assert marked[len(marked) - 1]["labels"].tolist() == labels[:2048]


@pytest.mark.skipif(not REAL.is_dir(), reason="the data of LLaMA-Factory is not beside this repository")
def test_real_entries_that_need_more_are_refused_when_chosen() -> None:
    refused = {"mllm_demo": "data.no_file", "dpo_en_demo": "data.ranking", "kto_en_demo": "data.feedback"}
    for name, code in refused.items():
        with pytest.raises(InputError) as caught:
            list(examples(find(REAL, name, "data.train"), REAL, "data.train"))
        assert caught.value.code == code
