"""The run store without an engine: names, folders, states that are read off the disk."""

import errno
import json
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import psutil
import pytest

from core import config, runs, supervisor
from core.crew import FIRST, MEETING, Crew, Plan
from core.errors import InputError, TuneboardError
from core.events import Writer
from core.files import RESERVE, hold, write_json
from core.team import Team
from core.workspace import jailed, locate, tuned
from tests.conftest import ROOT
from tests.core.helpers import of_type


def test_two_runs_of_one_name_get_two_folders(tmp_path):
    job = config.resolve({"name": "my run"})
    assert [runs.create(job, tmp_path).name for _ in range(3)] == ["my-run", "my-run-2", "my-run-3"]
    assert runs.settings(tmp_path / "runs" / "my-run") == job
    assert {folder.name for folder in runs.listed(tmp_path)} == {"my-run", "my-run-2", "my-run-3"}


def test_settings_are_frozen(tmp_path):
    folder = runs.create(config.resolve({}), tmp_path)
    assert (folder / "run.yaml").stat().st_mode & 0o777 == 0o400


def test_a_workspace_that_is_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError) as raised:
        runs.create(config.resolve({}), tmp_path)
    assert raised.value.code == "path.not_writable" and "runs" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "folder"),
    {"Мой опыт": "Мой-опыт", "第二": "第二", "Отчёт 2": "Отчёт-2", "हिंदी": "हिंदी", "_x": "_x", "и\u0306": "й"}.items(),
)
def test_runs_are_called_and_found_by_letters_of_any_script(tmp_path, name, folder):
    made = runs.create(config.resolve({"name": name}), tmp_path)
    assert made.name == folder and runs.create(config.resolve({"name": name}), tmp_path).name == f"{folder}-2"
    assert runs.find(folder, tmp_path) == made and runs.look(made).name == folder
    (made / "adapter").mkdir()
    assert tuned(folder, tmp_path) == made / "adapter"


@pytest.mark.parametrize(
    "name", ["\u202eabc", "a\u200b", "..", ".x", "-x", "a\0b", "a\\b", "第" * 100, "\ufb2c" * 60, "\ud800"]
)
def test_names_of_folders_stay_in_theirs(name):
    made = runs.slug(name, "empty")
    assert runs.slug(made, "") == made and made[0] not in ".-" and len(made.encode()) <= 240
    assert all(letter.isalnum() or letter in "._-" or unicodedata.combining(letter) for letter in made)


@pytest.mark.parametrize("name", ["../x", "", ".", "a/b", "no-such-run", "x" * 500, "я" * 500, "a\n", "~"])
def test_unknown_or_crooked_names_are_refused(tmp_path, name):
    with pytest.raises(InputError) as raised:
        runs.find(name, tmp_path)
    assert raised.value.code == "run.unknown"


def pretend(folder: Path, pid: int, created: float, launched: float = 0.0):
    write_json(folder / runs.PROCESS, {"pid": pid, "created": created, "launched": launched})


def test_states_follow_from_the_folder(tmp_path):
    folder = runs.create(config.resolve({}), tmp_path)
    assert runs.look(folder).status == "new"
    me = psutil.Process()
    pretend(folder, me.pid, me.create_time())
    assert runs.look(folder).status == "starting"
    Writer(folder).write("started", job="train")
    assert runs.look(folder).status == "running"
    (folder / runs.STOP).touch()
    assert runs.look(folder).status == "stopping"
    pretend(folder, me.pid, me.create_time() - 100)  # the number is in use again by another process
    assert runs.look(folder).status == "lost"
    Writer(folder).write("end", cause="stopped", status=20)
    assert runs.look(folder).status == "stopped"
    write_json(folder / runs.EXIT, {"cause": "nan", "status": 13})
    assert runs.look(folder).status == "nan"


@pytest.mark.parametrize(("kept", "code"), [(False, "rank.died_early"), (True, "rank.died")])
def test_who_died_among_several_is_told_with_whether_there_is_something_to_go_on_from(tmp_path, kept, code):
    write_json(tmp_path / MEETING / FIRST, {"rank": 0, "status": -9})
    if kept:
        (tmp_path / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    error = Team(rank=1, size=2).blame(tmp_path, TuneboardError("engine.failed", what="Connection closed by peer"))
    assert (error.code, error.params) == (code, {"rank": 0, "size": 2, "signal": 9})


def test_an_end_of_an_earlier_life_does_not_count(tmp_path):
    folder = runs.create(config.resolve({}), tmp_path)
    writer = Writer(folder)
    writer.write("started", job="train")
    writer.write("end", cause="done", status=0)
    me = psutil.Process()
    pretend(folder, me.pid, me.create_time(), launched=time.time() + 1)
    assert runs.look(folder).status == "starting"


def test_looking_again_reads_only_what_is_new(tmp_path):
    folder = runs.create(config.resolve({}), tmp_path)
    writer = Writer(folder)
    writer.write("step", step=1, total=9, loss=1.0)
    first = runs.look(folder)
    writer.write("step", step=2, total=9, loss=0.5)
    second = runs.look(folder, first)
    assert second.state.step == 2 and second.offset > first.offset
    assert second.state.dump() == runs.look(folder).state.dump()


def test_a_run_that_is_done_or_no_training_is_not_resumed(tmp_path):
    done = runs.create(config.resolve({}), tmp_path)
    write_json(done / runs.EXIT, {"cause": "done"})
    other = runs.create(config.resolve({"kind": "export"}), tmp_path)
    for folder, code in ((done, "run.complete"), (other, "run.not_training")):
        with pytest.raises(InputError) as raised:
            runs.resume(folder)
        assert raised.value.code == code


def test_the_engine_gets_none_of_the_boards_secrets(monkeypatch):
    monkeypatch.setenv("TUNEBOARD_PASSWORD", "a secret of twelve")
    assert "TUNEBOARD_PASSWORD" not in runs.environment()


def test_the_log_is_capped_rotated_and_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LOG_BYTES", 1000)
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_value")
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as out:
        for number in range(100):
            out.write(b"line %d with hf_very_secret_value in it\n" % number)
        out.write(b"\xff no newline at the end")
    supervisor.keep_log(os.fdopen(read_end, "rb"), tmp_path / "console.log")
    new, old = (tmp_path / "console.log").read_bytes(), (tmp_path / "console.log.1").read_bytes()
    assert len(new) <= 1000 and len(old) <= 1000 and new.endswith(b"end")
    assert b"secret" not in new + old and b"***" in new


@pytest.mark.parametrize("place", ["full", "gone"])
def test_a_log_that_can_not_be_written_holds_nobody_up(tmp_path, place):
    log = tmp_path / ("console.log" if place == "full" else "gone/console.log")
    if place == "full":
        log.symlink_to("/dev/full")
    lines = tmp_path / "lines"
    lines.write_bytes(b"a line\n" * 1000)
    with lines.open("rb") as source:
        supervisor.keep_log(source, log)
        assert not source.read()


def test_the_others_end_where_the_first_to_fail_can_not_be_written_down(tmp_path):
    hold(tmp_path)
    crew = Crew(tmp_path, [], Plan(processes=2, module="no_such"))
    (crew.meeting / FIRST).mkdir()  # so that no file can take its place
    while (status := crew.wait(0.1)) is None:
        pass
    assert status == 1 and crew.first and not (tmp_path / RESERVE).exists()


def test_paths_stay_in_the_workspace(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    assert jailed("data", tmp_path) == tmp_path / "data"
    assert jailed("assets/demo/model", tmp_path).is_absolute()
    for path in ("/etc/passwd", "../..", "data/../../x", "link/passwd", "~/x"):
        with pytest.raises(InputError) as raised:
            jailed(path, tmp_path)
        assert raised.value.code == "path.outside", path
    assert jailed("/etc/hosts", tmp_path, allowed=(Path("/etc"),)) == Path("/etc/hosts").resolve()


def test_tuned_means_a_run_or_a_folder(tmp_path):
    run = runs.create(config.resolve({"name": "a"}), tmp_path)
    with pytest.raises(InputError) as raised:
        tuned("a", tmp_path)
    assert raised.value.code == "run.untuned"
    with pytest.raises(InputError) as raised:
        tuned(str(run), tmp_path)
    assert raised.value.code == "run.untuned"
    (run / "adapter").mkdir()
    for reference in ("a", str(run), "runs/a"):
        assert tuned(reference, tmp_path) == run / "adapter"
    (tmp_path / "mine").mkdir()
    assert tuned("mine", tmp_path) == tmp_path / "mine"
    for path in ("nothing here", "assets/../pyproject.toml"):
        with pytest.raises(InputError):
            locate(path, tmp_path)


def test_a_record_that_is_not_json_is_no_record(tmp_path):
    folder = runs.create(config.resolve({}), tmp_path)
    (folder / runs.PROCESS).write_text('{"pid": ')
    assert runs.look(folder).status == "new"
    (folder / runs.EXIT).write_text(json.dumps({"cause": "done"}))
    assert runs.look(folder).status == "done"


def test_settings_that_do_not_fit_on_the_disk_leave_no_run(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
    make = "from core import config, runs; from pathlib import Path; runs.create(config.resolve({}), Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"import sys; {limit}{make}", str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True).stderr
    assert "the disk is full" in told and not list((tmp_path / "runs").iterdir())


FULL = """
import errno, os, sys
from pathlib import Path
folder, tell, write_text = Path(sys.argv[1]), os.write, Path.write_text
full = (folder / ".reserve").exists
def refuse(path, text, **options):
    if full():
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    return write_text(path, text, **options)
os.write, Path.write_text = lambda fd, line: tell(fd, line[:10] if full() else line), refuse
from core import supervisor, worker
sys.exit(%s)
"""
"""A disk that is full as long as the reserve lies on it: it takes ten bytes of an event and no file."""


def on_a_full_disk(folder: Path, what: str) -> int:
    hold(folder)
    return subprocess.run([sys.executable, "-c", FULL % what, str(folder)], cwd=ROOT, check=False).returncode


def test_a_worker_tells_that_the_disk_is_full(tmp_path):
    folder = runs.create(config.resolve({}), tmp_path)
    assert on_a_full_disk(folder, "worker.main(folder)") == 2
    (error,) = of_type(folder, "error")
    assert error["code"] == "disk.write" and [e["cause"] for e in of_type(folder, "end")] == ["failed"]
    assert (folder / "events.jsonl").read_bytes().count(b"\n") == 2  # nothing torn


def test_a_supervisor_tells_on_a_full_disk_how_a_run_ended(tmp_path):
    folder = runs.create(config.resolve({}), tmp_path)
    assert on_a_full_disk(folder, """supervisor.main(folder, 1.0, '{"module": "no_such"}')""") == 0
    assert runs.look(folder).status == "failed" and not (folder / RESERVE).exists()


def test_a_run_whose_start_can_not_be_written_down_is_not_started(tmp_path, monkeypatch):
    folder = runs.create(config.resolve({}), tmp_path)
    before = psutil.Process().children()
    replace, full = Path.replace, OSError(errno.ENOSPC, "No space left on device")

    def refuse(path, to):
        if to.name == runs.PROCESS:
            raise full
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError) as raised:
        runs.launch(folder)
    assert raised.value.code == "disk.write"
    started = [child for child in psutil.Process().children() if child not in before]
    assert not psutil.wait_procs(started, timeout=30)[1]


def test_a_run_without_room_for_its_end_is_not_started(tmp_path, monkeypatch):
    folder = runs.create(config.resolve({}), tmp_path)
    write_json(folder / runs.EXIT, {"cause": "failed"})

    def refuse(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError) as raised:
        runs.resume(folder)
    assert raised.value.code == "disk.write" and runs.look(folder).status == "failed"
    assert not {RESERVE, "supervisor.log"} & {path.name for path in folder.iterdir()}
