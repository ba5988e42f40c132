"""`tuneboard data`: one JSON object, exit codes, the description that it writes."""

import json
import shutil

import pytest
from test_cli import ask, only_object
from transformers import AutoTokenizer

DEMO = "assets/demo/model"
GOOD = '{"question": "What is 1 + 1?", "answer": "2"}\n{"question": "What is 2 + 2?", "answer": "4"}\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_inspect_tells_format_mapping_rows_and_every_broken_one(file, tmp_path):
    done = ask("data", "inspect", file, "-w", tmp_path, "--json")
    found = only_object(done.stdout)
    assert done.exit_code == 0 and (found["format"], found["rows"], found["broken"]) == ("alpaca", 2, 0)
    assert found["mapping"] == {"prompt": "question", "response": "answer"} and found["errors"] == []
    file.write_text(GOOD + "{oops\n" + '{"question": 3, "answer": "x"}\n', encoding="utf-8")
    done = ask("data", "inspect", file, "-w", tmp_path, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 2 and (found["rows"], found["broken"]) == (2, 2)
    assert [(error["line"], error["code"]) for error in found["broken_rows"]] == [
        (3, "data.json"),
        (4, "data.not_text"),
    ]
    told = ask("data", "inspect", file, "-w", tmp_path)
    assert told.exit_code == 2 and "line 3" in told.stdout and "line 4" in told.stdout
    assert ask("data", "inspect", tmp_path / "gone.csv").exit_code == 2


def test_sets_are_found_by_folder_and_name(tmp_path):
    described = "assets/demo/data/orders_test"
    assert only_object(ask("data", "inspect", described, "-w", tmp_path, "--json").stdout)["rows"] == 100
    (tmp_path / "both").mkdir()
    for name in ("a", "b"):
        (tmp_path / "both" / f"{name}.jsonl").write_text(GOOD, encoding="utf-8")
    assert only_object(ask("data", "inspect", tmp_path / "both", "-w", tmp_path, "--json").stdout)["rows"] == 4
    told = ask("data", "report", tmp_path / "both", "-w", tmp_path)
    assert "b.jsonl: 1" in told.stdout
    for name, code in (("owner/set", "data.hub"), ("https://127.0.0.1:9/a.jsonl", "data.unreadable")):
        assert only_object(ask("data", "inspect", name, "-w", tmp_path, "--json").stdout)["errors"][0]["code"] == code
    (tmp_path / "a.zip").write_bytes(b"PK")
    refused = only_object(ask("data", "inspect", tmp_path / "a.zip", "-w", tmp_path, "--json").stdout)
    assert refused["errors"][0]["code"] == "data.suffix"


def test_a_damaged_description_is_told_and_left_alone(file, tmp_path):
    (tmp_path / "data").mkdir()
    for text in ('{"a": {}', "[]", '{"a": {"file_name": "x"}, "a": {"file_name": "y"}}'):
        (tmp_path / "data" / "dataset_info.json").write_text(text)
        done = ask("data", "add", file, "-w", tmp_path, "--json")
        assert done.exit_code == 2 and only_object(done.stdout)["errors"][0]["code"] == "data.description"
        assert [path.name for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")] == [
            "dataset_info.json"
        ]


def test_render_gives_what_the_template_gives(file, tmp_path):
    found = only_object(ask("data", "render", file, "--row", 2, "--model", DEMO, "-w", tmp_path, "--json").stdout)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    talk = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
    assert found["text"] == tokenizer.apply_chat_template(talk, tokenize=False)
    assert found["ids"] == tokenizer.apply_chat_template(talk, return_dict=False)
    learned = [index for index, mask in zip(found["ids"], found["mask"], strict=True) if mask]
    assert tokenizer.decode(learned) == "4<|end|>"
    assert ask("data", "render", file, "--row", 9, "--model", DEMO, "-w", tmp_path).exit_code == 2


def test_add_describes_a_file_and_refuses_to_overwrite(file, tmp_path):
    done = ask("data", "add", file, "--name", "sums", "-w", tmp_path, "--json")
    assert done.exit_code == 0 and only_object(done.stdout)["entry"]["columns"]["prompt"] == "question"
    assert json.loads((tmp_path / "data" / "dataset_info.json").read_text())["sums"]["file_name"] == "sums.jsonl"
    again = ask("data", "add", file, "--name", "sums", "-w", tmp_path)
    assert again.exit_code == 2 and again.stderr.startswith("data.name_taken")
    wrong = ask("data", "add", file, "columns.prompt=nothing", "--name", "other", "-w", tmp_path)
    assert wrong.exit_code == 2 and wrong.stderr.startswith("data.no_column")


def test_report_and_cache(file, tmp_path):
    file.write_text(GOOD * 2, encoding="utf-8")
    shutil.copy(file, tmp_path / "held.jsonl")
    done = ask("data", "report", file, "--eval", "held.jsonl", "-w", tmp_path, "--json")
    found = only_object(done.stdout)
    assert {finding["code"]: finding["count"] for finding in found["findings"]} == {
        "report.duplicate": 2, "report.leak": 4,
    }  # fmt: skip
    assert found["card"]["examples"] == 4
    assert "ROUGE-L" in ask("data", "report", file, "-w", tmp_path).stdout
    assert only_object(ask("data", "cache", "-w", tmp_path, "--json").stdout)["bytes"] == 0
    assert only_object(ask("data", "cache", "--clear", "-w", tmp_path, "--json").stdout)["freed"] == 0


def test_names_that_would_overwrite_or_hide_a_file_are_refused(tmp_path):
    (tmp_path / "src").mkdir()
    rows = tmp_path / "src" / "dataset_info.json"
    rows.write_text('[{"question": "a", "answer": "b"}]', encoding="utf-8")
    done = ask("data", "add", rows, "--name", "mine", "-w", tmp_path, "--json")
    assert only_object(done.stdout)["errors"][0]["code"] == "data.bad_name" and not list(tmp_path.glob("data/*"))
    for name in ("q", "other"):
        (tmp_path / "src" / f"{name}.jsonl").write_text(GOOD, encoding="utf-8")
    assert ask("data", "add", tmp_path / "src" / "q.jsonl", "-w", tmp_path).exit_code == 0
    done = ask("data", "add", tmp_path / "src" / "other.jsonl", "--name", "q.jsonl", "-w", tmp_path, "--json")
    assert only_object(done.stdout)["errors"][0]["code"] == "data.name_taken"
