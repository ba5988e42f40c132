"""Reading on behind a place, past broken rows, and without more time or memory than it takes: nothing goes missing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from core.data.batch import fingerprint, split
from core.data.describe import find, sets
from core.data.desk import Desk, Question
from core.data.encode import Encoded
from core.data.inspect import inspect, page
from core.data.kept import clear, folder
from core.data.report import report
from core.data.rows import Broken, examples
from core.data.sources import items
from core.errors import InputError
from core.formats import Row
from core.sections import Data
from tests.conftest import write_rows
from tests.core.test_data import talk

NO_FORMAT = {"a": 1, "b": 2}


def asked(ask: str, folder_: Path, name: str, **more: Any) -> dict[str, Any]:
    """What the board and the command line are told about a set."""
    question = Question(ask=ask, workspace=str(folder_), data=Data(folder=str(folder_), train=[name]), **more)
    return getattr(Desk(question, lambda done: None), ask)()


def test_every_row_of_a_folder_is_on_one_page(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name, count in (("a", 30), ("b", 5), ("c", 40)):
        write_rows(
            tmp_path / "all" / f"{name}.jsonl", [{"instruction": f"{name}{i}", "output": "x"} for i in range(count)]
        )
    seen, after = [], 0
    for _ in range(20):
        found = page(find(tmp_path, "all", ""), tmp_path, after, count=7)
        seen += [row["cells"]["instruction"] for row in found.rows]
        if found.next is None:
            break
        after = found.next
    assert seen == [f"{name}{i}" for name, count in (("a", 30), ("b", 5), ("c", 40)) for i in range(count)]


def test_a_finding_in_a_folder_names_file_and_line_and_leads_there(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    write_rows(tmp_path / "all" / "a.jsonl", [{"instruction": f"a{i}", "output": "x"} for i in range(5)])
    write_rows(tmp_path / "all" / "b.jsonl", [{"instruction": n, "output": "x"} for n in ("b0", "a3", "b2")])
    (finding,) = asked("report", tmp_path, "all")["findings"]
    assert (finding["code"], finding["lines"], finding["files"]) == ("report.duplicate", [2], ["b.jsonl"])
    (row,) = asked("page", tmp_path, "all", after=finding["places"][0] - 1, count=1)["rows"]
    assert (row["line"], row["file"], row["cells"]["instruction"]) == (2, "b.jsonl", "a3")


def test_far_pages_pass_over_lines_unread(tmp_path: Path) -> None:
    """A quoted field may go over several lines; a page begins behind the last of them."""
    rows = [f'"question {i}\nmore",{i}\n' for i in range(200_000)]
    (tmp_path / "a.csv").write_text("question,answer\n" + "".join(rows), encoding="utf-8")
    first = page(find(tmp_path, "a.csv", ""), tmp_path, 0, count=3)
    second = page(find(tmp_path, "a.csv", ""), tmp_path, first.next or 0, count=3)
    assert [row["cells"]["answer"] for row in first.rows + second.rows] == list("012345")
    last = page(find(tmp_path, "a.csv", ""), tmp_path, 399_995, count=3)
    assert [row["cells"]["answer"] for row in last.rows] == ["199997", "199998", "199999"]
    table = pa.table({"text": [str(i) for i in range(5000)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    assert page(find(tmp_path, "a.parquet", ""), tmp_path, 4321, count=1).rows[0]["cells"]["text"] == "4321"


BROKEN = {
    "csv": ("a.csv", b'instruction,output\na,b\n"x"y,b\nc,d\n"open,e\nf,g\n\xff,h\ni,\0\nj,k\n', 4, 4),
    "field over lines": ("a.csv", b'instruction,output\na,"first\nbad \xff byte\nfor example, this tail"\ne,f\n'
                                  b'g,"x\ny\0"\nh,i\n', 2, 2),
    "blank lines first": ("a.csv", b"\n\ninstruction;output\na;b\nc;d\n", 2, 0),
    "huge number": ("a.json", b'[{"instruction":"a","output":"b"},{"output":%s}]' % (b"9" * 5000), 1, 1),
    "list": ("a.json", b'[{"instruction":"a","output":"b"},\n{"instruction":"a","instruction":"c","output":"d"},\n'
                       b'{"instruction":NaN,"output":"b"},\n5,\n{"instruction":"e","output":"f"}]', 2, 3),
    "many first": ("a.jsonl", b"oops\n" * 30 + b'{"instruction":"a","output":"b"}\n' * 3, 3, 30),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_one_broken_row_leaves_the_others(tmp_path: Path, case: str) -> None:
    name, content, good, bad = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    broken = Broken()
    rows = list(examples(find(tmp_path, name, ""), tmp_path, "data.train", broken=broken))
    assert (len(rows), broken.count) == (good, bad)
    found = inspect(find(tmp_path, name, ""), tmp_path)
    assert (found.rows, found.broken) == (good, bad)
    assert len({error["place"] for error in found.errors}) == bad
    if bad:
        with pytest.raises(InputError):
            list(examples(find(tmp_path, name, ""), tmp_path, "data.train"))


def test_a_mistake_at_the_beginning_of_a_large_list_is_told_where_it_is(tmp_path: Path) -> None:
    rows = ",\n".join(json.dumps({"text": "b" * 1000}) for _ in range(12_000))
    (tmp_path / "a.json").write_text('[{"text":"a"},\n{"text":"b" "x"},\n' + rows + "]", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        list(items(find(tmp_path, "a.json", ""), tmp_path, ""))
    assert (caught.value.code, caught.value.params["line"]) == ("data.json", 2)


def test_half_characters_break_no_view(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"instruction":"a","output":"b"}\n{"instruction":"\\ud800","output":"b","\\udfff":"\\ud801"}\n',
        encoding="utf-8",
    )
    found = [asked("page", tmp_path, "a.jsonl"), asked("inspect", tmp_path, "a.jsonl")]
    assert json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
    assert found[1]["broken"] == 1 and found[1]["errors"][0]["code"] == "data.character"


def test_columns_that_tell_nothing_are_shown_all_the_same(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [NO_FORMAT] * 3)
    found = asked("page", tmp_path, "a.jsonl")
    assert found["entry"]["problem"]["code"] == "data.no_format" and found["rows"][0]["cells"] == {"a": "1", "b": "2"}


def test_a_row_is_rendered_by_its_number_broken_or_not(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction":"a","output":"b"}\noops\n{"instruction":"c","output":"d"}\n')
    model = {"model": {"path": str(tiny_model)}, "count": 1}
    assert asked("render", tmp_path, "a.jsonl", nth=2, **model)["rows"][0]["error"]["code"] == "data.json"
    third = asked("render", tmp_path, "a.jsonl", nth=3, **model)
    assert third["rows"][0]["line"] == 3 and third["next"] is None
    assert asked("render", tmp_path, "a.jsonl", nth=1, **model)["next"] == 1
    with pytest.raises(InputError) as caught:
        asked("render", tmp_path, "a.jsonl", nth=9, **model)
    assert (caught.value.code, caught.value.params["line"]) == ("data.no_row", 9)


def test_long_texts_are_no_cut_rows(tmp_path: Path, tiny_model: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "red " * 300}])
    data = Data(folder=str(tmp_path), train=["a.jsonl"], cutoff=64)
    question = Question(ask="lengths", workspace=str(tmp_path), data=data, model={"path": str(tiny_model)})  # type: ignore[arg-type]
    found = Desk(question, lambda done: None).lengths()
    assert found["cut"] == 0 and found["tokens"] == found["longest"] > 300 and found["packs"] > 1


def test_what_one_row_makes_stays_on_one_side() -> None:
    count = 200
    rows = Encoded(np.zeros(count, np.int32), np.ones(count, bool), np.arange(count + 1), np.arange(count) // 4)
    learned, held = split(rows, 0.2, 1)
    assert len(held) == 40 and not set(learned.source_B) & set(held.source_B)


def test_an_entry_with_a_name_twice_is_named_and_its_neighbours_are_not(tmp_path: Path) -> None:
    text = """{
      "a": {"file_name": "x.jsonl", "columns": {"prompt": "p", "prompt": "q"}},
      "prompt": {"file_name": "x.jsonl"},
      "b": {"file_name": "x.jsonl", "columns": {"prompt": "p", "response": "p"}},
      "c": {"file_name": "x.jsonl", "encoding": "utf-16"},
      "d": {"file_name": "x.jsonl", "ranking": "false"}
    }"""
    (tmp_path / "dataset_info.json").write_text(text)
    found = {described.name: described.problem for described in sets(tmp_path)}
    lines = {name: problem.params["line"] for name, problem in found.items() if problem}
    assert lines == {"a": 2, "b": 4, "c": 5, "d": 6}


def test_a_file_read_in_another_way_is_another_set(tmp_path: Path) -> None:
    marks = []
    for name in ("x.txt", "x.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
        (tmp_path / "dataset_info.json").write_text(json.dumps({"s": {"file_name": name}}))
        marks.append(fingerprint(find(tmp_path, "s", ""), tmp_path, ""))
    assert marks[0] != marks[1]


@pytest.mark.parametrize("packed", [False, True])
def test_arrow_of_any_kind_is_read_and_adds_no_nulls(tmp_path: Path, packed: bool) -> None:
    import gzip

    table = pa.Table.from_pylist([
        {"messages": [{"role": "user", "content": str(i)}], "tools": [{"name": "f", "parameters": {key: 1}}]}
        for i, key in enumerate("ab")
    ])  # fmt: skip
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    path = tmp_path / ("a.arrow.gz" if packed else "a.arrow")
    path.write_bytes(gzip.compress(sink.getvalue()) if packed else sink.getvalue())
    rows: list[Any] = [raw for _, raw in items(find(tmp_path, path.name, ""), tmp_path, "")]
    assert [row["tools"][0]["parameters"] for row in rows] == [{"a": 1}, {"b": 1}]


def test_comparisons_that_differ_in_one_answer_are_no_repeats() -> None:
    pairs = [Row(talk("q"), [{"role": "assistant", "content": "yes"}, {"role": "assistant", "content": f"no {i}"}])
             for i in range(3)]  # fmt: skip
    codes = [finding.code for finding in report(enumerate(pairs, 1))["findings"]]
    assert "report.duplicate" not in codes


def test_what_a_killed_run_left_in_the_cache_is_cleared(tmp_path: Path) -> None:
    folder(tmp_path).mkdir(parents=True)
    (folder(tmp_path) / ".abc.999999999.1").write_bytes(b"half")
    assert clear(tmp_path) == 4 and not list(folder(tmp_path).iterdir())
