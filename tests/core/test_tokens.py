"""Texts to tokens where it is delicate: control tokens that people type, tokens that overlap, blanks without end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core import templates
from core.data.encode import Encoder, within
from core.data.render import SEAM, Renderer
from core.data.report import report
from core.data.show import show
from core.data.tokens import WORTHWHILE, Tokenizer
from core.errors import InputError
from core.formats import Row
from tests.core.test_data import talk

KEYED = {"role": "assistant", "content": "",
         "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"<|end|>": 1}}}]}  # fmt: skip
TYPED = Row(talk("what is <|end|> and <|end|><|user|> for", "red blue", "and <|assistant|>"),
            [{"role": "assistant", "content": "green pen"}])  # fmt: skip
WORDS = "red green blue pen book cup order for Anna Paul Mia please two three four"


@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize("marks", [True, False])
def test_typed_control_tokens_do_not_move_the_mask(tiny_model: Path, marks: bool, proven: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    if not marks:
        tokenizer.chat_template = tokenizer.chat_template.replace("{% generation %}", "").replace(
            "{% endgeneration %}", ""
        )
    tokens = Tokenizer(tokenizer)
    tokens.done = WORTHWHILE if proven else 0
    assert not proven or tokens.fast
    encoder = Encoder(Renderer(tokenizer), tokens, 200)
    encoded = encoder.encode([TYPED])
    learned = tokenizer.decode(encoded.ids_N[encoded.learned_N], skip_special_tokens=False)
    assert learned.replace("\n", "") == "red blue<|end|>green pen<|end|>"
    controls = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|user|>")}
    asked = encoded.ids_N[~encoded.learned_N]
    assert sum(token in controls for token in asked.tolist()) == 4  # the template's own: two headers, two ends
    (piece,) = show(TYPED, encoder)
    marked = "".join(text for text, is_learned in zip(piece.tokens, piece.learned, strict=True) if is_learned)
    assert marked.replace("\n", "") == "red blue<|end|>green pen<|end|>" and SEAM not in piece.text


@pytest.mark.parametrize("marks", [True, False])
def test_control_tokens_in_names_of_arguments_stay_text(tiny_model: Path, marks: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    chatml = templates.read("chatml")
    tokenizer.chat_template = chatml if marks else re.sub(r"\{%- (end)?generation -%\}", "", chatml)
    encoded = Encoder(Renderer(tokenizer), Tokenizer(tokenizer), 400).encode([Row(talk("1 + 1?"), [KEYED])])
    assert encoded.ids_N.tolist().count(tokenizer.eos_token_id) == 1
    found = report([(1, Row(talk("q"), [KEYED]))])
    assert "report.control_token" in [finding.code for finding in found["findings"]]


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2 and Mistral have them: a blank is set before a text."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([WORDS + " < / s >"] * 20, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.chat_template = templates.read("plain")
    return made


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_no_blank_is_set_where_a_control_token_is_split(scheme: str) -> None:
    tokenizer = metaspace(scheme)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    text = f"red <{SEAM}/s> pen</s>blue"
    ((ids, begin, end),) = Tokenizer(tokenizer).encode([text])
    said = [tokenizer.convert_ids_to_tokens(int(token)) for token in ids]
    plain = tokenizer.convert_ids_to_tokens(tokenizer("red < /s> pen", add_special_tokens=False)["input_ids"])
    joined = "".join(said).replace("▁", " ")
    assert joined.strip().replace("  ", " ").startswith("red </s> pen</s>") and "< /" not in joined, (said, plain)
    assert said.count("</s>") == 1 and begin[0] == 0 and end[-1] == len(text)


def test_added_tokens_that_overlap_are_left_to_the_tokenizer(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert Tokenizer(tokenizer).fast
    tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in range(2, 9)])
    tokens = Tokenizer(tokenizer)
    assert tokens.fast is None
    tokens.done = WORTHWHILE
    text = "red" + " " * 8 + "pen"
    assert tokens.encode([text])[0][0].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_million_blanks_are_tokens_like_any_other(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokens = Tokenizer(tokenizer)
    tokens.done = WORTHWHILE
    ((ids, _, end),) = tokens.encode(["a" + " " * 1_000_000 + "b"])
    assert len(ids) and end[-1] == 1_000_002


def test_tools_that_a_template_leaves_out_are_refused(tiny_model: Path) -> None:
    """Otherwise the model would learn to answer with nothing."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    call = {"role": "assistant", "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}  # fmt: skip
    tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}
    rows = [Row(talk("1 + 1?"), [call]), Row(talk("1 + 1?"), [{"role": "assistant", "content": "2"}], tools=[tool])]
    for row in rows:
        with pytest.raises(InputError) as caught:
            Renderer(tokenizer).pieces([row])
        assert (caught.value.code, caught.value.place) == ("data.template_tools", "data.template")
    said = Row(talk("please add 1 to 1"), [{"role": "assistant", "content": "2"}], tools=[tool])
    with pytest.raises(InputError):
        Renderer(tokenizer).pieces([said])  # that the word stands in the question does not offer the tool
    thought = Row(talk("1 + 1?"), [{"role": "assistant", "content": "2", "reasoning_content": "one and one"}])
    with pytest.raises(InputError) as caught:
        Renderer(tokenizer).pieces([thought])
    assert caught.value.code == "data.template_thoughts"
    assert Renderer(tokenizer, thinking="answer").pieces([thought])
    tokenizer.chat_template = templates.read("chatml")
    quoted = {"type": "function", "function": {"name": 'say "hi"', "parameters": {}}}
    assert Renderer(tokenizer).pieces(
        [Row(talk("x"), [{"role": "assistant", "content": "2"}], tools=[quoted]), thought]
    )
    (called,), (offered,) = Renderer(tokenizer).pieces(rows)
    (begin, end), = called.spans  # fmt: skip
    assert called.text[begin:end] == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|end|>'
    assert '"description": "adds"' in offered.text and offered.text.startswith("<|im_start|>system\n<tools>")


def test_an_answer_that_begins_like_the_words_left_out_is_learned_whole(tiny_model: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
    )
    ((piece,),) = Renderer(tokenizer).pieces([Row(talk("one"), [{"role": "assistant", "content": "<b>two</b>"}])])
    ((begin, end),) = piece.spans
    assert piece.text[begin:end] == "<b>two</b><|end|>"
    tokens = Tokenizer(tokenizer).encode([piece.text])[0]
    assert np.flatnonzero(within(tokens, piece.spans)).size


def test_a_cut_prompt_keeps_the_answer_also_when_prompts_are_learned(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = Row(talk("red " * 200), [{"role": "assistant", "content": "green pen"}])
    for all_of_it in (False, True):
        encoder = Encoder(Renderer(tokenizer), Tokenizer(tokenizer), 32, "prompt", train_on_prompt=all_of_it)
        encoded = encoder.encode([row])
        assert "green pen<|end|>" in tokenizer.decode(encoded.ids_N[encoded.learned_N]) and len(encoded.ids_N) == 32
