"""Each format of rows to the standard row; what each refuses; how a file's format is told from its columns."""

from __future__ import annotations

from typing import Any

import pytest

from core.data.detect import detect
from core.data.inspect import entry, mapping
from core.errors import InputError
from core.formats import Format, Line, Row
from core.formats.alpaca import Alpaca
from core.formats.completion import Completion
from core.formats.messages import OpenAI, ShareGPT
from core.formats.plain import Text
from core.formats.preference import Preference
from tests.core.test_data import talk

LINE = Line("data.train", "rows.jsonl", 7)
USER, GOOD, BAD = talk("Hi")[0], {"role": "assistant", "content": "Yes"}, {"role": "assistant", "content": "No"}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


PAIRS: dict[str, tuple[Format, dict[str, Any]]] = {
    "texts": (Preference(), {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}),
    "messages": (Preference(), {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    "whole conversations": (Preference(), {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    "prompt and whole conversations": (Preference(), {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    "transcripts": (Preference(), {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes",
                                   "rejected": "\n\nHuman: Hi\n\nAssistant: No"}),
    "alpaca": (Alpaca(ranking=True), {"instruction": "Hi", "chosen": "Yes", "rejected": "No"}),
    "alpaca list": (Alpaca(ranking=True), {"instruction": "Hi", "output": ["Yes", "No"]}),
    "sharegpt": (ShareGPT(ranking=True), {"conversations": [{"from": "human", "value": "Hi"}],
                                          "chosen": {"from": "gpt", "value": "Yes"},
                                          "rejected": {"from": "gpt", "value": "No"}}),
    "openai": (OpenAI(ranking=True), {"messages": [USER], "chosen": GOOD, "rejected": BAD}),
    "prompt and what follows": (Preference(), {"prompt": [USER], "chosen": [GOOD], "rejected": [USER, BAD]}),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_every_shape_of_a_comparison_is_one_row(name: str) -> None:
    names, raw = PAIRS[name]
    row = names.row(raw, LINE)
    assert row == Row([USER], [GOOD, BAD]) and row.kind == "ranking"
    assert row.messages(0) == [USER, GOOD] and row.messages(1) == [USER, BAD]


FEEDBACK: dict[str, tuple[Format, dict[str, Any]]] = {
    "completion": (Completion(), {"prompt": "Hi", "completion": "Yes", "label": True}),
    "completion messages": (Completion(), {"prompt": [USER], "completion": [GOOD], "label": 1}),
    "alpaca": (Alpaca(), {"instruction": "Hi", "output": "Yes", "kto_tag": "true"}),
    "openai": (OpenAI(kto_tag="label"), {"messages": [USER, GOOD], "label": True}),
}


@pytest.mark.parametrize("name", FEEDBACK)
def test_every_shape_of_praise_is_one_row(name: str) -> None:
    names, raw = FEEDBACK[name]
    row = names.row(raw, LINE)
    assert row == Row([USER], [GOOD], label=True) and row.kind == "feedback"


def test_tools_are_brought_to_one_shape() -> None:
    tool = {"name": "add", "parameters": {}}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "1 + 1"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "2"}, {"from": "gpt", "value": "It is 2"},
        ],
        "tools": '[{"name": "add", "parameters": {}}]',
    }  # fmt: skip
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    openai = {
        "messages": [
            {"role": "user", "content": "1 + 1"},
            {"role": "assistant", "content": None,
             "tool_calls": [{**call, "function": {"name": "add", "arguments": '{"a": 1}'}}]},
            {"role": "tool", "content": "2"}, {"role": "assistant", "content": "It is 2"},
        ],
        "tools": [tool],
    }  # fmt: skip
    expected = Row([talk("1 + 1")[0], {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "2"}], [says("It is 2")], tools=[tool])  # fmt: skip
    assert ShareGPT().row(sharegpt, LINE) == expected and OpenAI().row(openai, LINE) == expected


def test_media_reasoning_weights_and_parts_are_kept() -> None:
    raw = {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "A pen", "reasoning_content": "I see a pen.", "weight": 0},
            {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes"},
        ],
        "images": ["a.png"],
    }  # fmt: skip
    row = OpenAI().row(raw, LINE)
    assert row.media == {"images": ["a.png"]} and row.prompt[0]["content"] == "<image>What?"
    assert row.prompt[1] == {**says("A pen"), "reasoning_content": "I see a pen.", "weight": 0}
    assert (
        OpenAI().row({"messages": [{"role": "developer", "content": "Be brief"}, USER, GOOD]}, LINE).system
        == "Be brief"
    )


def test_nothing_is_added_that_nobody_wrote() -> None:
    for names, raw in ((Alpaca(), {"instruction": "Hi", "output": "Yes"}), (OpenAI(), {"messages": [USER, GOOD]})):
        assert names.row(raw, LINE) == Row([USER], [GOOD])
    assert Text().row({"text": " as it stands\n"}, LINE) == Row([], [says(" as it stands\n")], plain=True)


CHAT = {"messages": [USER, GOOD]}
WRONG: dict[str, tuple[Format, dict[str, Any], str]] = {
    "same answers": (Preference(), {"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}, "data.same_answers"),
    "rejected missing": (Preference(), {"prompt": "Hi", "chosen": "Yes"}, "data.no_column"),
    "rejected null": (Preference(), {"prompt": "Hi", "chosen": "Yes", "rejected": None}, "data.not_text"),
    "two questions": (Preference(), {"chosen": [USER, GOOD], "rejected": [talk("Ho")[0], BAD]}, "data.prompts_differ"),
    "no answer chosen": (Preference(), {"chosen": [USER], "rejected": [USER, BAD]}, "data.no_answer"),
    "one output": (Alpaca(ranking=True), {"instruction": "Hi", "output": ["Yes"]}, "data.not_pair"),
    "answered already": (OpenAI(ranking=True), {**CHAT, "chosen": GOOD, "rejected": BAD}, "data.no_question"),
    "answer by the user": (OpenAI(ranking=True), {"messages": [USER], "chosen": USER, "rejected": BAD},
                           "data.no_answer"),
    "prompt with answer": (Completion(), {"prompt": [USER, GOOD], "completion": "x"}, "data.no_question"),
    "label 2": (Completion(), {"prompt": "Hi", "completion": "Yes", "label": 2}, "data.label"),
    "label null": (Completion(), {"prompt": "Hi", "completion": "Yes", "label": None}, "data.label"),
    "label word": (Completion(), {"prompt": "Hi", "completion": "Yes", "label": "good"}, "data.label"),
    "tools broken": (OpenAI(), {**CHAT, "tools": "[{"}, "data.tools_json"),
    "tools a number": (OpenAI(), {**CHAT, "tools": 3}, "data.tools_json"),
    "call without name": (OpenAI(), {"messages": [USER, {**GOOD, "tool_calls": [{"x": 1}]}]}, "data.tools_json"),
    "call arguments broken": (OpenAI(), {"messages": [USER, {**GOOD, "tool_calls": [{"name": "a", "arguments": "{"}]}]},
                              "data.tools_json"),
    "tool unasked": (OpenAI(), {"messages": [USER, GOOD, {"role": "tool", "content": "2"}, GOOD]}, "data.role_order"),
    "weight half": (OpenAI(), {"messages": [USER, {**GOOD, "weight": 0.5}]}, "data.weight"),
    "part unknown": (OpenAI(), {"messages": [{"role": "user", "content": [{"type": "smell"}]}, GOOD]}, "data.part"),
    "images too few": (OpenAI(), {"messages": [talk("<image><image>")[0], GOOD], "images": ["a.png"]},
                       "data.media_count"),
    "images unmentioned": (Alpaca(), {"instruction": "Hi", "output": "Yes", "images": ["a.png"]}, "data.media_count"),
    "image a number": (Alpaca(), {"instruction": "Hi", "output": "Yes", "images": [3]}, "data.media_paths"),
    "starts with the assistant": (OpenAI(), {"messages": [GOOD, USER, GOOD]}, "data.role_order"),
    "text of our own": (Text(), {"text": "a\ufdd0b"}, "data.character"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows_are_named(name: str) -> None:
    names, raw, code = WRONG[name]
    with pytest.raises(InputError) as caught:
        names.row(raw, LINE)
    assert caught.value.code == code and caught.value.params["line"] == 7
    assert "{" not in str(caught.value).replace(str(caught.value.params.get("found", "")), "")


TOLD: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "alpaca": ({"instruction": "a", "output": "b"}, "alpaca", {}),
    "question": ({"question": "a", "answer": "b"}, "alpaca", {"prompt": "question", "response": "answer"}),
    "capitals": ({"Question": "a", "Answer": "b"}, "alpaca", {"prompt": "Question", "response": "Answer"}),
    "classes": ({"text": "a", "label": "b"}, "alpaca", {"prompt": "text", "response": "label"}),
    "system": ({"prompt": "a", "response": "b", "system_prompt": "c"}, "alpaca",
               {"prompt": "prompt", "response": "response", "system": "system_prompt"}),
    "completion": ({"prompt": "a", "completion": "b"}, "completion", {}),
    "kto": ({"prompt": "a", "completion": "b", "label": True}, "completion", {}),
    "chat": ({"messages": [USER, GOOD]}, "openai", {}),
    "chat elsewhere": ({"talk": [USER, GOOD]}, "openai", {"messages": "talk"}),
    "sharegpt": ({"conversations": [{"from": "human", "value": "a"}]}, "sharegpt", {}),
    "sharegpt roles": ({"conversations": [{"from": "user", "value": "a"}, {"from": "bot", "value": "b"}]}, "sharegpt",
                       {"user_tag": "user", "assistant_tag": "bot"}),
    "sharegpt pairs": ({"conversations": [{"from": "human", "value": "a"}], "chosen": {}, "rejected": {}}, "sharegpt",
                       {"ranking": True}),
    "pairs": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", {"ranking": True}),
    "pairs by question": ({"question": "a", "chosen": "b", "rejected": "c"}, "preference",
                          {"ranking": True, "prompt": "question"}),
    "alpaca pairs": ({"instruction": "a", "chosen": "b", "rejected": "c"}, "alpaca", {"ranking": True}),
    "text": ({"text": "a"}, "text", {}),
    "content": ({"content": "a", "id": 3}, "text", {"prompt": "content"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_formats_are_told_from_columns(name: str) -> None:
    raw, kind, names = TOLD[name]
    found = detect([raw])
    assert found is not None and found.kind == kind
    given = {key: value for key, value in mapping(found).items() if kind != "preference" or key != "ranking"}
    assert given == {key: value for key, value in names.items() if kind != "preference" or key != "ranking"}
    described = entry("a.json", found)
    assert described["formatting"] == kind and described["file_name"] == "a.json"


def test_unknown_columns_are_no_format() -> None:
    assert detect([{"foo": "a", "bar": "b"}]) is None and detect([{"question": 3, "answer": 4}]) is None


def test_a_comparison_of_two_turns_keeps_the_first() -> None:
    turns = [says("A1"), talk("Q2")[0]]
    raw = {"prompt": "Hi", "chosen": [USER, *turns, GOOD], "rejected": [USER, *turns, BAD]}
    assert Preference().row(raw, LINE) == Row([USER, *turns], [GOOD, BAD])
    assert Preference().row({**raw, "chosen": [*turns, GOOD], "rejected": [*turns, BAD]}, LINE).prompt == [USER, *turns]
    for other in ({"rejected": [USER, says("B1"), turns[1], BAD]},
                  {"rejected": [{"role": "system", "content": "s"}, USER, *turns, BAD]}):  # fmt: skip
        with pytest.raises(InputError) as caught:
            Preference().row(raw | other, LINE)
        assert caught.value.code == "data.prompts_differ"


def test_a_tool_message_keeps_whose_answer_it_is() -> None:
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {}}}],
    }
    answer = {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "4"}
    row = OpenAI().row({"messages": [USER, call, answer, GOOD]}, LINE)
    assert row.prompt[2] == answer


DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"a": DEEP}
HIDDEN = {
    "tools text": ({"tools": "[" * 200_000}, "data.tools_json"),
    "tools depth": ({"tools": [{"name": "f", "parameters": DEEP}]}, "data.tools_json"),
    "tools surrogate": ({"tools": [{"name": "f", "description": "\ud800"}]}, "data.character"),
    "tools key": ({"tools": [{"name": "f", "\0": 1}]}, "data.character"),
    "part without a file": (
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}, GOOD]},
        "data.media_count",
    ),
    "arguments": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
            ]
        },
        "data.tools_json",
    ),
    "marker": ({"messages": [{"role": "user", "content": "<image> what"}, GOOD], "images": []}, "data.media_count"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_wrong_deep_inside_is_named(name: str) -> None:
    raw, code = HIDDEN[name]
    with pytest.raises(InputError) as caught:
        OpenAI().row({"messages": [USER, GOOD], **raw}, LINE)
    assert caught.value.code == code


def test_markers_of_both_answers_are_counted() -> None:
    for pair in ({"prompt": "p<image>", "chosen": "a", "rejected": "b <image>"},
                 {"prompt": "p", "chosen": "a <image>", "rejected": "b"}):  # fmt: skip
        with pytest.raises(InputError) as caught:
            Preference().row({**pair, "images": ["x.png"]}, LINE)
        assert caught.value.code == "data.media_count"


FOUND: dict[str, tuple[list[dict[str, Any]], Format]] = {
    "capitals": ([{"Instruction": "a", "Input": "b", "Output": "c"}],
                 Alpaca(prompt="Instruction", query="Input", response="Output")),
    "context": ([{"instruction": "a", "context": "b", "response": "c"}], Alpaca(query="context", response="response")),
    "praise as numbers": ([{"messages": [USER, GOOD], "label": n} for n in (1, 0)], OpenAI(kto_tag="label")),
    "praise as texts": ([{"question": "a", "answer": "b", "label": n} for n in ("true", "false")],
                        Alpaca(prompt="question", response="answer", kto_tag="label")),
    "a class": ([{"text": "a", "label": n} for n in ("1", "0")], Alpaca(prompt="text", response="label")),
    "binarized": ([{"prompt": "Hi", "messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}],
                  Preference()),
    "no message": ([{"messages": [USER, "b"]}], OpenAI()),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_formats_are_told_from_what_people_call_things(name: str) -> None:
    rows, names = FOUND[name]
    assert detect(rows) == names
