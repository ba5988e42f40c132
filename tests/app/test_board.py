"""The board as a whole: light, silent, and deaf to nonsense from anyone who reaches the port."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app import board
from app.jobtab import wished
from app.lean import gr
from app.live import Live, Seen
from app.page import Page
from app.queue_panel import QueuePanel
from app.show import CONTROL, head, log_tail
from app.tabs.runs import _Listing, _table
from core import config, runs
from core.errors import InputError
from core.events import Writer
from core.files import write_json

ROOT = Path(__file__).parents[2]
COLD = """
import sys, pathlib, psutil
from app.board import application
application(pathlib.Path(sys.argv[1]))
heavy = [name for name in ("torch", "transformers", "peft", "trl", "datasets", "matplotlib") if name in sys.modules]
print(heavy, psutil.Process().memory_info().rss >> 20)
"""


def make_run(workspace: Path, name: str = "one", steps: int = 20) -> Path:
    folder = runs.create(config.resolve({"name": name}), workspace)
    events = Writer(folder)
    events.write("started", job="train", pid=1)
    events.write("phase", phase="train", total=steps)
    for step in range(1, steps + 1):
        events.write(
            "step", step=step, total=steps, loss=3.0 / step, lr=1e-4, grad_norm=1.0, tokens_per_second=9.0, memory=1
        )
    events.write("eval", step=steps, loss=0.2, seconds=0.1)
    events.write("end", cause="done", status=0, seconds=1.0, metrics={})
    events.close()
    write_json(
        folder / "exit.json", {"status": 0, "signal": None, "cause": "done", "ended": time.time(), "peak_bytes": 1}
    )
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("workspace")
    make_run(workspace)
    with TestClient(board.application(workspace), raise_server_exceptions=False) as client:
        yield client


def test_it_is_light(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COLD, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120
    )
    heavy, megabytes = done.stdout.rsplit(maxsplit=1)
    assert heavy.strip() == "[]"
    assert int(megabytes) <= 300


def test_the_page_asks_nobody_else(client):
    page = client.get("/")
    assert page.status_code == 200
    configuration = client.get("/config").json()
    assert not configuration.get("analytics_enabled") and not configuration.get("run_history")
    assert not configuration["footer_links"]
    assert client.get("/monitoring").status_code in (403, 404)


def test_every_tab_is_there_in_order(client):
    tabs = [c["props"]["elem_id"] for c in client.get("/config").json()["components"] if c["type"] == "tabitem"]
    assert tabs[:2] == ["tb-tab-data", "tb-tab-train"] and tabs[-1] == "tb-tab-runs"


REFUSE = {
    "tb-stop", "tb-resume", "tb-runs-stop", "tb-runs-resume", "tb-runs-enqueue", "tb-runs-yes", "tb-queue-list",
    "tb-queue-at-once",
}  # fmt: skip


def test_what_may_be_refused_is_queued_so_that_the_page_tells_why(client):
    told = client.get("/config").json()
    ids = {component["id"]: component["props"].get("elem_id") for component in told["components"]}
    begun = [d for d in told["dependencies"] if d["trigger_after"] is None]
    silent = {ids.get(place) for d in begun if not d["queue"] for place, _ in d["targets"]}
    assert set(ids.values()) >= REFUSE and not REFUSE & silent


NONSENSE = [
    None,
    -1,
    1e308,
    "x" * 5000,
    "<script>alert(1)</script>",
    [],
    [{}],
    {},
    {"a": [1]},
    True,
    "../../etc/passwd",
    "\x00",
]


@pytest.mark.parametrize("wrong", NONSENSE, ids=lambda value: repr(value)[:20])
def test_nonsense_gives_no_traceback(client, wrong):
    for number, dependency in enumerate(client.get("/config").json()["dependencies"]):
        if not dependency["backend_fn"] or dependency["queue"]:
            continue
        data = {"fn_index": dependency["id"], "data": [wrong] * len(dependency["inputs"]), "session_hash": f"s{number}"}
        answer = client.post(
            "/gradio_api/run/predict", content=json.dumps(data), headers={"content-type": "application/json"}
        )
        assert answer.status_code in (200, 400, 413, 422, 500)
        assert "Traceback" not in answer.text and ".py" not in answer.text, dependency["api_name"]


def test_a_stranger_network_needs_a_password(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNEBOARD_PASSWORD", raising=False)
    with pytest.raises(InputError) as caught:
        board.serve(tmp_path, host="0.0.0.0")
    assert caught.value.code == "cli.board_password"
    monkeypatch.setenv("TUNEBOARD_PASSWORD", "short")
    with pytest.raises(InputError) as caught:
        board.serve(tmp_path, host="0.0.0.0")
    assert caught.value.code == "cli.board_password_short"


def test_a_taken_port_names_its_holder():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError) as caught:
            board._listen("127.0.0.1", port)
    assert caught.value.code == "cli.port_taken"
    assert "pid" in caught.value.params["holder"]


def test_the_default_port_gives_way(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(board, "DEFAULT_PORT", taken.getsockname()[1])
        with board._listen("127.0.0.1", None) as other:
            assert other.getsockname()[1] != taken.getsockname()[1]


def test_the_log_is_short_and_plain(tmp_path):
    assert log_tail(tmp_path) == ""
    lines = "".join(f"line {n}\n" for n in range(10_000))
    (tmp_path / "console.log").write_bytes(lines.encode() + b"\x1b[31mred\x1b[0m\n 1%\r 2%\r99%\nlast \xff\x00\n")
    tail = log_tail(tmp_path).split("\n")
    assert len(tail) <= 200
    assert tail[-3:] == ["red", "99%", "last �"]
    assert not CONTROL.search("\n".join(tail))


@pytest.fixture
def live(tmp_path):
    with gr.Blocks():
        with gr.Tabs() as tabs:
            page = Page(
                tmp_path,
                gr.State("en"),
                gr.State(""),
                tabs,
                gr.State(("", 0)),
                gr.State(("", 0)),
                gr.State(("", "", 0)),
            )
        return Live(page)


def test_what_only_judges_is_offered_for_an_export_alone(live, tmp_path):
    for name, stage in (("pupil", "sft"), ("judge", "rm")):
        folder = runs.create(config.resolve({"name": name, "stage": stage}), tmp_path)
        (folder / "adapter").mkdir()
        Writer(folder).write("saved", what="adapter", path="adapter")
        shown = dict(zip(map(id, live.outputs), live.tick(name, "en", Seen()), strict=True))
        offered = [shown[id(button)]["visible"] for button in (live.chat, live.evaluate, live.export)]
        assert offered == [name == "pupil", name == "pupil", True]
        assert [wished(live.page, name, kind) for kind in ("serving", "export")] == ["pupil", name]


def test_the_table_of_runs_tells_the_stage_of_a_training(live, tmp_path):
    runs.create(config.resolve({"name": "compared", "stage": "dpo"}), tmp_path)
    runs.create(config.resolve({"kind": "export", "name": "sent", "source": "compared"}), tmp_path)
    told = _table(live.page, "ru", runs.listed(tmp_path), "")
    assert "<td>Обучение · DPO</td>" in told and "<td>Экспорт</td>" in told


def test_a_tick_sends_only_what_is_new(live, tmp_path):
    folder = make_run(tmp_path)
    first = dict(zip(map(id, live.outputs), live.tick("one", "en", Seen()), strict=True))
    assert "Loss" in first[id(live.charts)]["value"]
    seen = first[id(live.seen)]
    quiet = dict(zip(map(id, live.outputs), live.tick("one", "en", seen), strict=True))
    assert all(quiet[id(part)] == gr.skip() for part in (live.head, live.charts, live.log, live.stop, live.timer))
    events = Writer(folder)
    events.write("step", step=21, total=30, loss=0.5)
    later = dict(zip(map(id, live.outputs), live.tick("one", "en", seen), strict=True))
    assert later[id(live.charts)] != gr.skip() and later[id(live.log)] == gr.skip()
    other = dict(zip(map(id, live.outputs), live.tick("one", "ru", seen), strict=True))
    assert all(other[id(part)] != gr.skip() for part in (live.head, live.charts, live.log, live.stop))


def test_samples_and_every_evaluation_set_are_shown(live, tmp_path):
    folder = make_run(tmp_path)
    first = dict(zip(map(id, live.outputs), live.tick("one", "en", Seen()), strict=True))
    assert not first[id(live.samples)]["visible"]
    events, told = Writer(folder), {"prompt": "<b>What?</b>", "reference": "That."}
    for step, answer in ((10, "This."), (20, "<i>That.</i>")):
        events.write("sample", step=step, index=0, answer=answer, **told)
        for name in ("first", "second"):
            events.write("eval", step=step, set=name, loss=1 / step, seconds=0.1, metrics={"rewards/margins": 0.5})
    later = dict(zip(map(id, live.outputs), live.tick("one", "ru", first[id(live.seen)]), strict=True))
    shown, drawn = later[id(live.samples)], later[id(live.charts)]["value"]
    assert shown["visible"] and "шаге 20" in shown["value"] and "This." not in shown["value"]
    assert "&lt;i&gt;That." in shown["value"] and "<b>" not in shown["value"]
    assert 'data-name="first"' in drawn and 'data-name="second"' in drawn and "curve-eval-2" in drawn
    same = dict(zip(map(id, live.outputs), live.tick("one", "ru", later[id(live.seen)]), strict=True))
    assert same[id(live.samples)] == gr.skip()


def test_answers_that_were_drawn_are_shown_with_their_rewards(live, tmp_path):
    events = Writer(make_run(tmp_path))
    for step, answers in ((0, ["This.", "Old."]), (10, ["That."])):
        for index, answer in enumerate(answers):
            events.write("sample", step=step, index=index, prompt="What?", reference="That.", answer=answer, reward=0.5)
    shown = dict(zip(map(id, live.outputs), live.tick("one", "en", Seen()), strict=True))[id(live.samples)]["value"]
    assert "Reward" in shown and "0.5" in shown and "step 10" in shown and "Old." not in shown


def test_a_run_that_went_away_leaves_the_page_alive(live, tmp_path):
    folder = make_run(tmp_path)
    seen = live.tick("one", "en", Seen())[-1]
    runs.delete(folder)
    answer = live.tick("one", "en", seen)
    assert "Start the demo" not in str(answer[0]) and answer[live.outputs.index(live.first)]["visible"]


@pytest.mark.parametrize("status", ["failed", "killed", "out_of_memory", "nan", "lost"])
def test_a_bad_end_says_what_to_do(tmp_path, status):
    folder = make_run(tmp_path)
    write_json(folder / "exit.json", {"status": 1, "signal": 9, "cause": status, "ended": 1.0, "peak_bytes": 5})
    html = head("en", runs.look(folder))
    assert 'role="alert"' in html and "tb-chip-" in html


SEVERAL = {"signal": 9, "cause": "killed", "rank": 0, "processes": 2}


@pytest.mark.parametrize(
    ("kept", "ended", "told", "button"),
    [
        (False, {"signal": 9, "cause": "killed"}, "no checkpoint", "Start again"),
        (True, {"signal": 9, "cause": "killed"}, "last checkpoint is whole", "Resume"),
        (False, SEVERAL, "Process 0 of 2 (counted from 0) was killed by signal 9", "Start again"),
        (True, SEVERAL, "last checkpoint is whole", "Resume"),
        (False, {"cause": "lost"}, "no checkpoint", "Start again"),
        (False, {"cause": "nan"}, "", ""),
        (True, {"cause": "nan"}, "", "Resume"),
    ],
)
def test_no_checkpoint_is_promised_where_there_is_none(live, tmp_path, kept, ended, told, button):
    folder = make_run(tmp_path)
    write_json(folder / "exit.json", {"status": 1, "ended": 1.0} | ended)
    if kept:
        (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    found = dict(zip(map(id, live.outputs), live.tick("one", "en", Seen()), strict=True))
    html, onward = found[id(live.head)], found[id(live.resume)]
    assert told in html and ("checkpoint is whole" in html) <= kept
    assert (onward["visible"], onward["value"]) == (bool(button), button)
    with gr.Blocks():
        listing = _Listing(live.page, QueuePanel(live.page))
        assert listing._bar("en", "one")[2]["value"] == button


def test_the_command_tells_its_link_as_one_json_object(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "board", "--json", "--port", str(port), "-w", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        first = process.stdout.readline()
        process.terminate()
        rest = process.stdout.read()
    assert json.loads(first)["link"].startswith(f"http://127.0.0.1:{port}/?token=")
    assert rest == ""
