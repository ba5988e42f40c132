"""Code that models bring: agreed to on the command line, let run by a flag, told of on the board."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from app.cli import main
from core import config
from core.models import consent
from tests.app.test_cli import ENGLISH, ROOT, only_object
from tests.app.test_form import edited, make_form
from tests.conftest import write_rows
from tests.core.foreign_model import make_foreign


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(consent.FLAG, raising=False)
    yield
    consent.allow(False)


@pytest.fixture
def room(tmp_path):
    """A workspace with the model `m`, whose code touches RAN, and the set `rows`."""
    folder = tmp_path / "room"
    make_foreign(folder / "m", folder / "RAN")
    (folder / "data").mkdir()
    write_rows(folder / "data" / "rows.jsonl", [{"instruction": f"say {n}", "output": f"{n} ok"} for n in range(12)])
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    return folder


def ask(*words, room, typed="", language="C.UTF-8"):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [*map(str, words), "-w", str(room)], env={"LC_ALL": language}, input=typed)


def run(*words, room, **env):
    """Run the command line as a process of its own."""
    command = [sys.executable, "-m", "app.cli", *words, "-w", str(room), "--json"]
    env = os.environ | ENGLISH | env
    return only_object(subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300).stdout)


@pytest.mark.parametrize("language,yes", [("C.UTF-8", "yes"), ("ru_RU.UTF-8", "да"), ("zh_CN.UTF-8", "是")])
def test_trust_shows_the_code_and_asks(room, language, yes):
    shown = ask("trust", "m", room=room, typed="\n", language=language)
    assert shown.exit_code == 2 and "code.not_agreed" in shown.stderr and consent.given() == {}
    for fact in ("modeling_tiny.py", "configuration_tiny.TinyConfig", "sha256"):
        assert fact in shown.stderr
    assert ask("trust", "m", room=room, typed="", language=language).exit_code == 2  # the end of the input is a no
    assert ask("trust", "m", room=room, typed=f"{yes}\n", language=language).exit_code == 0
    (sha,) = consent.given()
    assert sha[:12] in ask("trust", "--list", room=room, language=language).stdout
    assert ask("trust", sha[:12], "--revoke", room=room, language=language).exit_code == 0
    assert consent.given() == {} and not (room / "RAN").exists()


def test_trust_as_json_asks_nobody(room):
    found = only_object(ask("trust", "m", "--json", room=room, typed="yes\n").stdout)
    assert found["errors"][0]["code"] == "code.not_agreed" and not found["agreed"]
    found = only_object(ask("trust", "m", "--json", "--yes", room=room).stdout)
    assert found["agreed"] and set(found["files"]) == {"configuration_tiny.py", "modeling_tiny.py"}
    assert only_object(ask("trust", "--json", room=room).stdout)["consents"][0]["sha256"] == found["sha256"]


REFUSED = {
    "nowhere": "path.missing",
    "data": "model.no_config",
    "m --revoke": "code.no_consent",
    "known": "code.none",
}


@pytest.mark.parametrize("words", REFUSED)
def test_trust_refuses_what_needs_none_or_is_none(room, tiny_model, words):
    (room / "known").symlink_to(tiny_model)
    done = ask("trust", *words.split(), room=room)
    assert done.exit_code == 2 and done.stderr.startswith(REFUSED[words])


def test_the_environment_is_no_flag(room):
    """What is exported in a shell, or left by another program, lets nothing run; neither does a file of settings."""
    ask("trust", "m", "--yes", room=room)
    (room / "run.yaml").write_text("model: {path: m}\ndata: {folder: data, train: [rows]}\n")
    assert run("train", str(room / "run.yaml"), room=room, **{consent.FLAG: "1"})["errors"][0]["code"] == "code.flag"
    (room / "run.yaml").write_text("remote_code: true\nmodel: {path: m}\n")
    told = ask("train", room / "run.yaml", "--remote-code", room=room)
    assert told.exit_code == 2 and told.stderr.startswith("config.unknown_key")
    assert not (room / "RAN").exists() and not (room / "runs").exists()


def test_train_evaluate_and_chat(room):
    """With consent and flag the model is taught, measured and asked like any other; without the flag it is not."""
    ask("trust", "m", "--yes", room=room)
    few = ["hardware.device=cpu", "hardware.threads=1"]
    lesson = ["model.path=m", "data.folder=data", "data.train=rows", "training.max_steps=2", "name=r", *few]
    assert run("train", *lesson, room=room)["errors"][0]["code"] == "code.flag"
    assert run("chat", "-m", "m", "-p", "x", room=room)["errors"][0]["code"] == "code.flag"
    assert run("doctor", *lesson, room=room)["errors"][0]["code"] == "code.flag"
    told = only_object(ask("doctor", *lesson, "--remote-code", "--json", room=room).stdout)
    assert told["verdict"] == "fits"  # by its headers alone
    row = ("data", "render", str(room / "data" / "rows.jsonl"), "-m", "m")
    assert run(*row, room=room)["errors"][0]["code"] == "code.flag"
    assert not (room / "RAN").exists()
    assert run(*row, "--remote-code", room=room)["errors"] == []
    assert run("train", *lesson, "--remote-code", room=room)["status"] == "done"
    assert (room / "RAN").exists() and (room / "runs" / "r" / "adapter").is_dir()
    asked = ["evaluated.folder=data", "evaluated.set=rows", "evaluated.max_rows=2", "generation.max_new_tokens=2", *few]
    assert set(run("evaluate", "tuned=r", *asked, "--remote-code", room=room)["metrics"]) == {"base", "r"}
    short = ["-s", "generation.max_new_tokens=2", "-s", "hardware.device=cpu"]
    assert set(run("chat", "r", "-p", "x", *short, "--remote-code", room=room)["answers"]) == {"base", "r"}
    assert run("runs", "resume", "r", room=room)["errors"][0]["code"] == "run.complete"


@pytest.mark.parametrize("kind", config.JOBS)
def test_the_form_tells_of_code_in_red(room, kind):
    form = make_form(room, config.JOBS[kind])

    def told(path):
        values = edited(form, model__path=path)
        (found,) = (update for out, update in zip(form.outputs, form.updates("en", values), strict=True)
                    if out in form.code)  # fmt: skip
        assert found["visible"] == bool(found["value"])
        return found["value"]

    assert told("") == told("nobody/nothing") == told("data") == told("../m") == ""
    asks = told("m")
    assert "tb-error" in asks and "modeling_tiny.py" in asks and f"tuneboard trust {room / 'm'}" in asks
    ask("trust", "m", "--yes", room=room)
    assert "tuneboard board --remote-code" in told("m")
    consent.allow(True)
    assert "will run with your rights" in told("m") and "modeling_tiny.py" in told("m")
    (room / "m" / "modeling_tiny.py").write_text("<b>")
    assert "changed" in told("m")
    consent.take_back(room / "m", "")
    settings = json.loads((room / "m" / "config.json").read_text())
    (room / "m" / "config.json").write_text(json.dumps(settings | {"model_type": "<i>"}))
    assert "&lt;i&gt;" in told("m") and "<i>" not in told("m")
    assert not (room / "RAN").exists()
