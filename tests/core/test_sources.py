"""Files of every kind, folders of them, packed ones; descriptions as others write them; looking at rows and reports."""

from __future__ import annotations

import csv
import functools
import gzip
import http.server
import json
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from rouge_score.rouge_scorer import RougeScorer

from core.data.add import add
from core.data.card import card, rouge_l, words
from core.data.describe import find, sets
from core.data.inspect import inspect, page
from core.data.report import report
from core.data.rows import Broken, examples, numbered
from core.errors import InputError
from core.formats import Row
from core.messages import MESSAGES
from tests.conftest import ROOT, write_rows
from tests.core.test_data import GOOD, talk

SHARED = ROOT.parent / "shared" / "data"
ROWS = [{"question": f"What is {i}, “{i}”?\nSay it.", "answer": str(i)} for i in range(30)]


def write(folder: Path, name: str) -> None:
    """Write the rows in the way that a name stands for."""
    path, table = folder / name, pa.Table.from_pylist(ROWS)
    opened = gzip.open if name.endswith(".gz") else open
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=7)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind in ("csv", "tsv"):
        with opened(path, "wt", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["question", "answer"], delimiter="\t" if kind == "tsv" else ";")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        with opened(path, "wt", encoding="utf-8") as file:
            file.write(json.dumps(ROWS) if kind == "json" else "".join(json.dumps(row) + "\n" for row in ROWS))


KINDS = "a.json a.jsonl a.ndjson a.csv a.tsv a.parquet a.arrow a.json.gz a.jsonl.gz a.csv.gz".split()  # noqa: SIM905


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    rows = list(examples(find(tmp_path, name, ""), tmp_path, ""))
    assert [(row.prompt[0]["content"], row.response[0]["content"]) for row in rows] == [
        (row["question"], row["answer"]) for row in ROWS
    ]
    second = page(find(tmp_path, name, ""), tmp_path, count=4)
    assert second.next is not None and len(second.rows) == 4
    third = page(find(tmp_path, name, ""), tmp_path, after=second.next, count=4)
    assert [row["cells"]["answer"] for row in second.rows + third.rows] == [str(i) for i in range(8)]
    found = page(find(tmp_path, name, ""), tmp_path, query="is 17,")
    assert [row["cells"]["answer"] for row in found.rows] == ["17"] and found.next is None


BAD: dict[str, tuple[str, bytes, str, dict[str, Any]]] = {
    "ragged": ("a.csv", b"question,answer\na,b\na,b,c\n", "data.ragged", {"line": 3, "given": 3, "wanted": 2}),
    "column twice": ("a.csv", b"a,a\n1,2\n", "data.column_twice", {"column": "a"}),
    "open quote": ("a.csv", b'question,answer\n"a,b\nc,d\n', "data.csv", {"line": 2}),
    "csv in latin-1": ("a.csv", "question,answer\né,b\n".encode("latin-1"), "data.not_utf8", {"line": 2}),
    "csv with NUL": ("a.csv", b"question,answer\na\0,b\n", "data.character", {"line": 2}),
    "csv alone": ("a.csv", b"question,answer\n", "data.empty", {}),
    "parquet cut": ("a.parquet", b"PAR1" + b"x" * 100, "data.columnar", {}),
    "parquet of text": ("a.parquet", GOOD, "data.foreign", {"what": "text", "wanted": "Parquet"}),
    "arrow of text": ("a.arrow", GOOD, "data.foreign", {"what": "text", "wanted": "Arrow"}),
    "gz of text": ("a.jsonl.gz", GOOD, "data.unpack", {}),
    "gz cut": ("a.jsonl.gz", gzip.compress(GOOD * 1000)[:-20], "data.unpack", {}),
    "gz bomb": ("a.jsonl.gz", gzip.compress(b" " * (80 << 20)), "data.bomb", {"ratio": 200}),
    "zip": ("a.json", b"PK\x03\x04", "data.foreign", {"what": "zip"}),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    file, content, code, params = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(examples(find(tmp_path, file, "data.train"), tmp_path, "data.train"))
    assert caught.value.code == code in MESSAGES and caught.value.place == "data.train"
    assert {key: caught.value.params[key] for key in params} == params


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("question,answer\nПривет,да\n".encode("cp1251"))
    info = {"a": {"file_name": "a.csv", "encoding": "cp1251", "columns": {"prompt": "question", "response": "answer"}},
            "b": {"file_name": "a.csv", "encoding": "klingon"}}  # fmt: skip
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (row,) = examples(find(tmp_path, "a", ""), tmp_path, "")
    assert row.prompt[0]["content"] == "Привет"
    with pytest.raises(InputError) as caught:
        find(tmp_path, "b", "")
    assert caught.value.code == "data.entry" and caught.value.params["line"] == 1


def test_broken_rows_are_counted_when_they_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"{bad\n" + GOOD + b'{"instruction": 3}\n' + b"\xff\n" + GOOD)
    broken = Broken()
    rows = list(numbered(find(tmp_path, "a.jsonl", ""), tmp_path, "", broken))
    assert [line.number for line, _, _ in rows] == [1, 3, 6] and broken.count == 3
    assert [error.params["line"] for error in broken.first] == [2, 4, 5]
    found = inspect(find(tmp_path, "a.jsonl", ""), tmp_path)
    assert (found.rows, found.broken, found.kinds) == (3, 3, {"answer": 3})
    assert [error["line"] for error in found.errors] == [2, 4, 5]


def test_a_file_elsewhere_is_read_by_its_address(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from core.data.describe import Described

    url = f"http://127.0.0.1:{server.server_port}/a.jsonl"
    assert len(list(examples(Described("far", url=url), tmp_path, ""))) == 30
    with pytest.raises(InputError) as caught:
        list(examples(Described("far", url=f"http://127.0.0.1:{server.server_port}/b.jsonl"), tmp_path, "data.train"))
    assert caught.value.code == "data.unreadable"
    server.shutdown()
    with pytest.raises(InputError) as caught:  # plain http is not taken from a description
        find(tmp_path, url, "data.train")
    assert caught.value.code == "data.unknown_set"


def test_a_hub_set_without_a_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        list(examples(find(tmp_path, "nobody/nothing", "data.train"), tmp_path, "data.train"))
    assert caught.value.code == "data.hub" and caught.value.params["name"] == "nobody/nothing"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not beside this repository")
def test_real_files_have_their_rows() -> None:
    counts = {
        "llamafactory/identity": 91, "llamafactory/alpaca_en_demo": 999, "llamafactory/dpo_en_demo": 300,
        "llamafactory/kto_en_demo": 300, "llamafactory/wiki_demo": 30, "gsm8k/train.jsonl": 7473,
        "gsm8k/test.jsonl": 1319, "banking77/train.csv": 10003, "banking77/test.csv": 3080,
        "cmmlu/test/anatomy.csv": 148,
    }  # fmt: skip
    for name, count in counts.items():
        folder = (SHARED / name).parent
        assert inspect(find(folder, Path(name).name, ""), folder).rows == count, name
    hh = SHARED / "hh_rlhf"
    found = inspect(find(hh, "harmless_base_test.jsonl.gz", ""), hh)
    assert found.rows + found.broken == 2312 and found.kinds == {"ranking": found.rows}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not beside this repository")
def test_the_descriptions_of_llamafactory_read_unchanged() -> None:
    found = sets(SHARED / "llamafactory")
    described = json.loads((SHARED / "llamafactory" / "dataset_info.json").read_text())
    assert len(described) == 104 and {d.name for d in found} >= set(described)
    assert [d.name for d in found if d.problem] == ["deepctrl"]  # on ModelScope only


def test_one_bad_entry_leaves_the_others(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    file = '"a.jsonl"'
    text = f'{{\n "good": {{"file_name": {file}}},\n "bad": {{"file_nam": {file}}},\n "twice": {{"file_name": {file}}},'
    text += '\n "twice": {}\n}'
    (tmp_path / "dataset_info.json").write_text(text)
    problems = {d.name: d.problem for d in sets(tmp_path)}
    assert problems["good"] is None and problems["bad"] is not None and problems["twice"] is not None
    assert problems["bad"].params["line"] == 3 and "file_name" in problems["bad"].params["what"]


NAMES = ["../x", "", "x" * 300, "con", "-x", ".x", "a/b", "a\0b"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    if name:
        with pytest.raises(InputError) as caught:
            add(tmp_path / "rows.jsonl", tmp_path / "data", name)
        assert caught.value.code == "data.bad_name" and not (tmp_path / "data").exists()
    else:
        assert add(tmp_path / "rows.jsonl", tmp_path / "data")["name"] == "rows"


def test_a_file_becomes_a_set_and_nothing_is_overwritten(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    made = add(tmp_path / "rows.jsonl", tmp_path / "data", "math")
    assert made["entry"]["columns"] == {"prompt": "question", "response": "answer"}
    assert len(list(examples(find(tmp_path / "data", "math", ""), tmp_path / "data", ""))) == 30
    with pytest.raises(InputError) as caught:
        add(tmp_path / "rows.jsonl", tmp_path / "data", "math")
    assert caught.value.code == "data.name_taken"
    (tmp_path / "other" / "x").mkdir(parents=True)
    write_rows(tmp_path / "other" / "rows.jsonl", ROWS[:3])
    assert add(tmp_path / "other" / "rows.jsonl", tmp_path / "data", "few")["file"] == "few.jsonl"
    assert len((tmp_path / "data" / "rows.jsonl").read_text().splitlines()) == 30
    before = (tmp_path / "data" / "dataset_info.json").read_text()
    write_rows(tmp_path / "more.jsonl", ROWS)
    with pytest.raises(InputError) as caught:
        add(tmp_path / "more.jsonl", tmp_path / "data", "", {"columns": {"prompt": "nothing"}})
    assert caught.value.code == "data.no_column" and (tmp_path / "data" / "dataset_info.json").read_text() == before


def row(asked: str, answered: str) -> Row:
    return Row([talk(asked)[0]], [{"role": "assistant", "content": answered}])


def test_the_report_finds_what_was_put_in() -> None:
    long = "the quick brown fox jumps over the lazy dog while the cat sleeps in the warm evening sun and dreams of mice"
    rows = [
        row("one", "two"), row("one", "two"), row(long, "yes indeed"), row(long + " today", "yes indeed"),
        row("x", " "), row("", "y"), row("mail", "to anna@example.org"), row("call", "+49 30 1234567"),
        row("say", "<|im_end|> now"),
    ]  # fmt: skip
    found = report(enumerate(rows, 1), enumerate([row("one", "two"), row("never", "seen")], 1))
    lines = {finding.code: (finding.lines, finding.others) for finding in found["findings"]}
    assert lines == {
        "report.duplicate": ([2], [1]), "report.near_duplicate": ([4], [3]), "report.empty_answer": ([5], []),
        "report.empty_question": ([6], []), "report.control_token": ([9], []), "report.email": ([7], []),
        "report.phone": ([8], []), "report.leak": ([1], [1]),
    }  # fmt: skip
    assert all(code in MESSAGES for code in lines) and found["rows"] == 9


def test_the_card_counts_as_rouge_score_does() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = [("What is the colour of the pen?", "The colour of the pen is red."), ("a b c", "c b a"), ("One.", "Two!")]
    for one, other in pairs:
        assert rouge_l(words(one), words(other)) == pytest.approx(scorer.score(one, other)["rougeL"].fmeasure)
    found = card([row("ab", "abcd"), row("abcd", "ab")])
    assert found["examples"] == 2 and found["input_length"] == {"mean": 3.0, "std": 1.0, "p95": pytest.approx(3.9)}
    assert card([])["examples"] == 0


def test_looking_at_rows_loads_no_torch(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    heavy = "{'torch', 'transformers'}"
    code = (
        "import sys; from pathlib import Path; from core.data.describe import find; from core.data.inspect import page;"
        f"folder = Path({str(tmp_path)!r}); page(find(folder, 'rows.jsonl', ''), folder);"
        f"sys.exit(bool({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_images_are_looked_at_and_named(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    Image.new("1", (1, 1)).save(tmp_path / "small.png")
    huge = (tmp_path / "small.png").read_bytes()
    # the header of a PNG says how large it is; so does this one, falsely
    size = (20_000).to_bytes(4, "big") * 2
    chunk = huge[12:16] + size + huge[24:29]
    (tmp_path / "huge.png").write_bytes(huge[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + huge[33:])
    outside = tmp_path.parent / "outside.png"
    Image.new("RGB", (4, 4)).save(outside)
    names = ["good.png", "text.png", "gone.png", "../outside.png", "huge.png", str(outside)]
    write_rows(tmp_path / "a.jsonl", [{"instruction": "<image>?", "output": "x", "images": [name]} for name in names])
    found = inspect(find(tmp_path, "a.jsonl", ""), tmp_path)
    told = [error["code"].removeprefix("data.media_") for error in found.errors]
    assert told == ["foreign", "missing", "missing", "huge", "missing"] and found.kinds == {"answer": 1}
    assert [error["line"] for error in found.errors] == [2, 3, 4, 5, 6]
