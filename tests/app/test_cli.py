"""The command line: exit codes, one JSON object on stdout, messages without traceback, cold start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.answers import best, fits, rows, tally
from app.cli import main
from app.cli_speak import plain
from core import config, runs

ROOT = Path(__file__).parents[2]
ENGLISH = {"LC_ALL": "C.UTF-8"}


def ask(*words, language="C.UTF-8"):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(word) for word in words], env={"LC_ALL": language})


def run(*words, workspace, **env):
    """Run the command line as a process of its own."""
    command = [sys.executable, "-m", "app.cli", *map(str, words), "-w", str(workspace)]
    env = os.environ | ENGLISH | env
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def only_object(text):
    """Return the one JSON object that stdout holds, and nothing else."""
    assert text.count("\n") == 1
    return json.loads(text)


BAD_SETTINGS = {
    "tuner.rnk=3": ("config.unknown_key_near", "tuner.rnk", "“rank”"),
    "trainng.epochs=3": ("config.unknown_key_near", "trainng", "“training”"),
    "zzz=1": ("config.unknown_key", "zzz", "spelling"),
    "optimizer.learning_rate=.nan": ("config.", "optimizer.learning_rate", ""),
    "training.batch_size=-1": ("config.greater_than_equal", "training.batch_size", "1 or more"),
    "training.batch_size=two": ("config.int_parsing", "training.batch_size", "whole number"),
    "tuner.kind=magic": ("config.union_tag_invalid", "tuner", "lora"),
    "tuner.rank=[": ("config.yaml", "", "tuner.rank"),
    "name=../evil": ("config.string_pattern_mismatch", "name", "begin with"),
    "kind=export": ("config.", "", ""),
}


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_bad_setting_is_named_with_its_place_and_the_way_out(setting, tmp_path):
    code, place, way = BAD_SETTINGS[setting]
    done = ask("train", setting, "-w", tmp_path)
    assert done.exit_code == 2 and not done.stdout
    assert done.stderr.startswith(code) and f"  {place}" in done.stderr and way in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()


BAD_FILES = {
    "tabs": "training:\n\tepochs: 1\n",
    "twice": "name: a\nname: b\n",
    "tag": "name: !!python/object/apply:os.system [true]\n",
    "alias": "model: &m {path: x}\ndata: *m\n",
    "list": "- a\n- b\n",
    "binary": b"\xff\xfe\x00\x01",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_run_file_is_refused(kind, tmp_path):
    path, content = tmp_path / "run.yaml", BAD_FILES[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = ask("train", path, "-w", tmp_path, "--json")
    found = only_object(done.stdout)
    assert done.exit_code == 2 and found["errors"][0]["code"].startswith(("config.", "cli."))
    assert str(path) in found["errors"][0]["text"] and "Traceback" not in done.stderr


BAD_COMMANDS = {
    "no such file": (["train", "nowhere.yaml"], "path.missing"),
    "no such recipe": (["train", "--recipe", "soup"], "recipe.unknown"),
    "two files": (["train", "a.yaml", "b.yaml"], "config.assignment"),
    "no such run": (["runs", "show", "nope"], "run.unknown"),
    "a run outside": (["runs", "delete", "../x"], "run.unknown"),
    "no such action": (["runs", "burn", "x"], "cli.action"),
    "no such job": (["settings", "soup"], "config.job"),
    "export of nothing": (["export", "nope"], "path.missing"),
    "chat with nothing": (["chat", "nope", "-p", "x"], "path.missing"),
    "evaluate nothing": (["evaluate", "tuned=nope"], "path.missing"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_a_bad_command_ends_with_2_and_one_object(name, tmp_path):
    words, code = BAD_COMMANDS[name]
    place = [] if words[0] == "settings" else ["-w", tmp_path]
    done = ask(*words, *place, "--json")
    found = only_object(done.stdout)
    assert done.exit_code == 2 and found["errors"][0]["code"] == code and found["errors"][0]["text"] != code
    assert "Traceback" not in done.stderr


def test_an_option_that_does_not_exist_ends_with_2():
    assert ask("train", "--soup").exit_code == 2


def test_an_unwritable_workspace_is_said_at_once(tmp_path):
    (tmp_path / "runs").write_text("a file stands in the way")
    done = ask("train", "-w", tmp_path)
    assert done.exit_code == 2 and "path.not_writable" in done.stderr


def test_layers_are_laid_in_their_order(tmp_path):
    from app.cli import layers

    path = tmp_path / "run.yaml"
    path.write_text("training: {epochs: 7, batch_size: 2}\n")
    job = config.resolve({"training": {"seed": 5}}, *layers([str(path), "training.epochs=9", "data.train=a,b"]))
    assert isinstance(job, config.Run)
    assert (job.training.epochs, job.training.batch_size, job.training.seed, job.data.train) == (9, 2, 5, ["a", "b"])


@pytest.mark.parametrize("language,word", [("ru_RU.UTF-8", "Состояние"), ("zh_CN.UTF-8", "状态"), ("C", "State")])
def test_the_language_is_that_of_the_terminal(language, word, tmp_path):
    from app import i18n

    if i18n.find(language[:2] if language != "C" else "en", "ui.cli.runs.state", None) is None:
        pytest.skip("not translated yet")
    runs.create(config.resolve({}), tmp_path)
    assert word in ask("runs", "-w", tmp_path, language=language).stdout


def test_settings_lists_every_key(tmp_path):
    for kind, job in config.JOBS.items():
        found = only_object(ask("settings", kind, "--json").stdout)
        assert [s["key"] for s in found["settings"]] == [s.key for s in config.known_settings(job)]
        assert all(s["label"] and s["help"] for s in found["settings"])
        text = ask("settings", kind).stdout
        assert all(f"{s.key} = " in text for s in config.known_settings(job))


def test_help_tells_the_exit_codes():
    text = " ".join(ask("--help").stdout.split())
    assert "0 done, 2 bad input, 12 out of memory, 13 NaN, 14 device, 20 stopped, 1 anything else" in text


def test_runs_shows_lists_and_deletes(tmp_path):
    folder = runs.create(config.resolve({"name": "my run"}), tmp_path)
    listed = only_object(ask("runs", "-w", tmp_path, "--json").stdout)
    assert [(r["name"], r["status"]) for r in listed["runs"]] == [("my-run", "new")]
    assert "my-run" in ask("runs", "-w", tmp_path).stdout
    assert "learning_rate" in ask("runs", "show", "my-run", "-w", tmp_path).stdout
    (folder / "console.log").write_text("one\x1b[31m red\n")
    assert "\x1b" not in ask("runs", "log", "my-run", "-w", tmp_path).stdout
    assert ask("runs", "delete", "my-run", "-w", tmp_path).exit_code == 0 and not folder.exists()


def test_control_characters_never_reach_the_terminal():
    assert plain("a\x1b]0;evil\x07b\x9b2Jc\nd\te") == "a]0;evilb2Jc\nd\te"


def test_a_missing_model_is_refused_before_a_run_is_made(tmp_path):
    done = run("evaluate", "model.path=nowhere", "--json", workspace=tmp_path)
    found = only_object(done.stdout)
    assert done.returncode == 2, done.stderr
    assert found["errors"][0]["place"] == "model.path" and not (tmp_path / "runs").exists()
    assert "Traceback" not in done.stderr and "nowhere" in done.stderr


def test_detach_returns_at_once_and_stop_ends_the_run(tmp_path):
    done = run("evaluate", "--detach", "--json", workspace=tmp_path)
    found = only_object(done.stdout)
    assert done.returncode == 0 and Path(found["run"]).is_dir()
    assert run("runs", "stop", Path(found["run"]).name, workspace=tmp_path).returncode == 0


@pytest.mark.parametrize("words", ["--version", "runs", "settings", "train --help"])
def test_the_command_line_is_cold(words, tmp_path):
    """Neither gradio nor torch is loaded for what needs neither."""
    code = (
        "import sys; from app.cli import main\n"
        f"try: main({words.split()!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('gradio', 'torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    env = os.environ | ENGLISH | {"TUNEBOARD_WORKSPACE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr


def test_doctor_says_whether_training_can_run(tmp_path):
    done = run("doctor", "--json", workspace=tmp_path)
    found = only_object(done.stdout)
    assert done.returncode == (0 if found["able"] else 1)
    assert {"Python", "PyTorch", "Memory", "Disk"} <= {f["name"] for f in found["findings"]}
    assert all(f["way_out"] for f in found["findings"] if f["grade"] in ("poor", "bad"))


def test_answers_are_read_by_pages_and_filters(tmp_path):
    given = [(True, True), (False, True), (True, False), (False, False)]
    for index, (base, tuned) in enumerate(given * 3):
        row = {"index": index, "prompt": "q", "reference": "r", "answers": {"base": "a", "t": "b"},
               "exact": {"base": base, "t": tuned}}  # fmt: skip
        with (tmp_path / "answers.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    assert tally(tmp_path) == {"all": 12, "wrong": 6, "changed": 6}
    assert [row["index"] for row in rows(tmp_path, "wrong", 1, 3)] == [3, 6, 7]
    assert rows(tmp_path / "nowhere") == []
    assert fits({"exact": {"base": False}}, "wrong")


def test_best_knows_that_less_perplexity_is_better():
    values = {"base": (1.0, 9.0), "t": (2.0, None), "u": (2.0, 3.0)}
    metrics = {name: {"bleu": bleu, "perplexity": odd} for name, (bleu, odd) in values.items()}
    assert best(metrics, "bleu") == {"t", "u"} and best(metrics, "perplexity") == {"u"}
    assert best(metrics, "rouge_l") == set()


def test_train_then_chat_with_what_came_of_it(tmp_path):
    """Two real steps of the demo, then the base and the tuned model answer; every process ends."""
    settings = ["training.max_steps=2", "training.batch_size=2", "data.max_rows=8", "hardware.threads=1"]
    done = run("train", "--recipe", "demo", *settings, "--json", workspace=tmp_path)
    found = only_object(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (found["status"], found["step"], found["errors"]) == ("done", 2, []) and found["metrics"]
    name = Path(found["run"]).name
    done = run("chat", name, "-p", "Hello", "-s", "generation.max_new_tokens=4", "--json", workspace=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(only_object(done.stdout)["answers"]) == {"base", name}
    assert run("runs", "resume", name, workspace=tmp_path).returncode == 2
