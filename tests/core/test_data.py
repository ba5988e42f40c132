"""Data sets: what is accepted, what is refused and how it is named."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.data.describe import find, sets
from core.data.rows import examples
from core.errors import InputError
from core.formats import Line
from core.formats.alpaca import Alpaca
from core.formats.messages import OpenAI, ShareGPT
from core.messages import MESSAGES

HOLE = re.compile(r"\{\w*\}")
"""A parameter that the text of a code asks for and the error does not have."""
LINE = Line("data.train", "rows.jsonl", 7)
GOOD = b'{"instruction": "a", "input": "", "output": "b"}\n'


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": turn} for i, turn in enumerate(turns)]


def read(folder: Path, name: str = "rows.jsonl") -> list[list[dict[str, str]]]:
    return [row.messages() for row in examples(find(folder, name, "data.train"), folder, "data.train")]


def test_alpaca_lays_out_system_history_and_input() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    system = {"role": "system", "content": "Be brief."}
    assert Alpaca().row(row, LINE).messages() == [system, *talk("Hi", "Hello", "Add.\n1 2", "3")]
    assert Alpaca().row({"instruction": "Add.", "output": "3"}, LINE).messages() == talk("Add.", "3")
    bare = {"instruction": "Add.", "input": None, "output": "3", "system": "", "history": []}
    assert Alpaca().row(bare, LINE).messages() == talk("Add.", "3")


def test_messages_and_sharegpt_are_one_format_with_two_vocabularies() -> None:
    expected = [{"role": "system", "content": "Be brief."}, *talk("Hi", "Hello", "Bye", "Good bye")]
    assert OpenAI().row({"messages": expected}, LINE).messages() == expected
    pairs = [("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"), ("gpt", "Good bye")]
    row = {"conversations": [{"from": who, "value": what} for who, what in pairs], "system": "Be brief."}
    assert ShareGPT().row(row, LINE).messages() == expected
    own = ShareGPT(messages="talk", role_tag="who", content_tag="says", user_tag="U", assistant_tag="A")
    row = {"talk": [{"who": "U", "says": "Hi"}, {"who": "A", "says": "Hello"}]}
    assert own.row(row, LINE).messages() == talk("Hi", "Hello")


def test_description_renames_some_columns_and_keeps_the_others(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "input": "b", "output": "c"}\n')
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    (tmp_path / "lone.json").write_text(json.dumps([{"conversations": turns}]))
    info: dict[str, Any] = {
        "mine": {"file_name": "rows.jsonl", "columns": {"prompt": "question", "history": None}},
        "hub": {"hf_hub_url": "a/b", "formatting": "sharegpt"},
        "pairs": {"file_name": "rows.jsonl", "ranking": True, "columns": {"chosen": "c", "rejected": "r"}},
        "liked": {"file_name": "rows.jsonl", "columns": {"kto_tag": "label"}},
        "seen": {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "m", "images": "i"}},
        "calls": {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"tools": "tools"}},
        "odd": {"file_name": "rows.jsonl", "formatting": "xml"},
        "typo": {"file_name": "rows.jsonl", "columns": {"promt": "question"}},
        "few": {"file_name": "rows.jsonl", "num_samples": -1},
        "nameless": {"formatting": "alpaca"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    listed = {s.name: s.problem.code if s.problem else "" for s in sets(tmp_path)}
    assert listed == {
        **dict.fromkeys(("mine", "hub", "pairs", "liked", "seen", "calls"), ""),
        "odd": "data.format", "typo": "data.entry", "few": "data.entry",
        "nameless": "data.entry", "lone.json": "",
    }  # fmt: skip
    assert read(tmp_path, "mine") == [talk("a\nb", "c")]
    assert read(tmp_path, "lone.json") == [talk("x", "y")]
    for name, code in listed.items():
        if code:
            with pytest.raises(InputError) as caught:
                find(tmp_path, name, "data.train.0")
            assert (caught.value.code, caught.value.place) == (code, "data.train.0") and code in MESSAGES
    with pytest.raises(InputError) as caught:
        find(tmp_path, "mien", "data.train")
    assert caught.value.code == "data.unknown_set" and caught.value.params["known"] == "mine"


def test_num_samples_and_list_files_and_marks_of_other_systems_are_read(tmp_path: Path) -> None:
    rows = [{"instruction": str(i), "output": "x"} for i in range(5)]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + b"".join(json.dumps(r).encode() + b"\r\n" for r in rows))
    info = {"two": {"file_name": "list.json", "num_samples": 2}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    assert [m[0]["content"] for m in read(tmp_path, "two")] == ["0", "1"]
    assert [m[0]["content"] for m in read(tmp_path, "bom.jsonl")] == list("01234")


BROKEN: dict[str, tuple[bytes, str, dict[str, Any]]] = {
    "empty": (b"", "data.empty", {}),
    "blank lines": (b"\n  \n\r\n", "data.empty", {}),
    "empty list": (b" [ ] ", "data.empty", {}),
    "torn last line": (GOOD + b'{"instruction": "a", "outp', "data.torn", {"line": 2}),
    "bad middle line": (GOOD + b'{"instruction": "a" "output": 1}\n' + GOOD, "data.json", {"line": 2, "column": 21}),
    "two objects a line": (GOOD.strip() + GOOD, "data.json", {"line": 1, "column": 49}),
    "key twice": (GOOD + b'{"output": "a", "output": "b"}\n', "data.json", {"line": 2}),
    "NaN": (GOOD + b'{"instruction": NaN, "output": "b"}\n', "data.json", {"line": 2}),
    "deep": (b'{"a": ' + b"[" * 100_000 + b"\n", "data.json", {"line": 1}),
    "scalar": (GOOD + b"3\n", "data.not_object", {"line": 2, "found": "number"}),
    "wrapped": (b'{"data": [{"instruction": "a"}]}\n', "data.wrapped", {"column": "data"}),
    "number in text": (GOOD + b'{"instruction": "a", "output": 3}\n', "data.not_text", {"line": 2, "found": "number"}),
    "null in text": (b'{"instruction": "a", "output": null}\n', "data.not_text", {"column": "output", "found": "null"}),
    "list in text": (b'{"instruction": ["a"], "output": ""}\n', "data.not_text", {"found": "array"}),
    "late missing column": (GOOD * 3 + b'{"instruction": "a"}\n', "data.no_column", {"line": 4, "column": "output"}),
    "no known column": (b'{"foo": "a"}\n', "data.no_format", {"columns": "foo"}),
    "history": (b'{"instruction": "a", "output": "b", "history": [["a"]]}\n', "data.history", {"line": 1}),
    "NUL": (b'{"instruction": "a\\u0000", "output": "b"}\n', "data.character", {"column": "instruction"}),
    "lone surrogate": (b'{"instruction": "a\\ud800", "output": "b"}\n', "data.character", {"column": "instruction"}),
    "latin-1": (GOOD + '{"instruction": "é"}\n'.encode("latin-1"), "data.not_utf8", {"line": 2, "byte": 233}),
    "UTF-16": (GOOD.decode().encode("utf-16"), "data.foreign", {"what": "UTF-16"}),
    "gzip": (gzip.compress(GOOD), "data.foreign", {"what": "gzip"}),
    "zip": (b"PK\x03\x04rest", "data.foreign", {"what": "zip"}),
    "parquet": (b"PAR1rest", "data.foreign", {"what": "Parquet"}),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "data.lfs", {"file": "rows.jsonl"}),
    "web page": (b"\n<!DOCTYPE html><html></html>", "data.foreign", {"what": "HTML"}),
    "long line": (b'{"instruction": "' + b"a" * (9 << 20) + b'"}\n', "data.long_line", {"line": 1}),
    "list, comma": (b'[\n{"instruction": "a", "output": "b"}\n{"a": 1}]', "data.json", {"line": 3, "column": 1}),
    "list, cut": (b'[\n{"instruction": "a", "output": "b"},\n', "data.json", {"line": 3}),
    "list, late": (b'[{"instruction": "a", "output": "b"},\n\n{"instruction": 1}]', "data.not_text", {"line": 3}),
    "list, more": (b'[{"instruction": "a", "output": "b"}]\n]', "data.json", {"line": 2}),
    "empty messages": (b'{"messages": []}\n', "data.not_list", {"found": "[]"}),
    "messages a text": (b'{"messages": "a"}\n', "data.not_list", {"found": "string"}),
    "message a text": (b'{"messages": ["a"]}\n', "data.not_message", {"column": "messages"}),
    "message without content": (b'{"messages": [{"role": "user"}]}\n', "data.no_column", {"column": "content"}),
    "unknown role": (b'{"messages": [{"role": "boss", "content": ""}]}\n', "data.role", {"role": "boss"}),
    "tool role": (b'{"messages": [{"role": "tool", "content": ""}]}\n', "data.role_order", {"role": "tool"}),
    "two users": (b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}\n',
                  "data.role_order", {"position": 2, "expected": "assistant"}),
    "late system": (b'{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}\n',
                    "data.role_order", {"role": "system"}),
    "no answer": (b'{"messages": [{"role": "user", "content": "a"}]}\n', "data.no_answer", {"line": 1}),
    "only system": (b'{"messages": [{"role": "system", "content": "a"}]}\n', "data.no_answer", {"line": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_named(tmp_path: Path, name: str) -> None:
    content, code, params = BROKEN[name]
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    error = caught.value
    assert error.code == code and error.code in MESSAGES and error.place == "data.train"
    assert {key: error.params[key] for key in params} == params
    assert not HOLE.search(str(error).replace(error.params.get("text", ""), ""))


def test_foreign_files_are_refused_without_being_opened(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_bytes(GOOD)
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (folder / "folder.jsonl").mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    info = {"up": {"file_name": "../secret.jsonl"}, "absolute": {"file_name": str(tmp_path / "secret.jsonl")},
            "gone": {"file_name": "gone.jsonl"}}  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    outside = dict.fromkeys(("link.jsonl", "up", "absolute"), "data.outside")
    irregular = {"folder.jsonl": "data.empty_folder", "pipe.jsonl": "data.not_regular"}
    for name, code in {**outside, **irregular, "gone": "data.no_file"}.items():
        with pytest.raises(InputError) as caught:
            read(folder, name)
        assert caught.value.code == code, name


@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff"])
def test_broken_description_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset_info.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        sets(tmp_path)
    assert caught.value.code == "data.description"


def test_random_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    chance = random.Random(0)
    good = json.dumps([{"instruction": "a", "output": "b", "messages": [{"role": "user"}]}] * 3).encode()
    for _ in range(500):
        content = bytearray(chance.choice([good, GOOD * 3]))
        for _ in range(chance.randrange(1, 5)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        (tmp_path / "rows.jsonl").write_bytes(content)
        try:
            read(tmp_path)
        except InputError as error:
            assert error.code in MESSAGES


def test_listing_sets_loads_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'numpy'}"
    code = f"import sys, core.data.describe, core.data.rows; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
