"""Evaluation and chat as real worker processes: exit status, end event, what is left."""

import json
import signal
import time

import pytest

from core.config import dump, resolve
from core.events import fold
from core.serving.client import endpoint, stream
from tests.conftest import launch_worker
from tests.core.models_fixtures import make_adapter


@pytest.fixture
def launch(workspace, tiny_model, tiny_data):
    """launch(kind, settings): (run folder, process) of a job on the tiny model."""
    make_adapter(workspace / "runs" / "tuned" / "adapter", tiny_model)

    def begin(kind, **settings):
        folder = workspace / "runs" / kind
        folder.mkdir()
        job = {"model": {"path": str(tiny_model)}, "tuned": ["tuned"], "hardware": {"device": "cpu", "threads": 1}}
        (folder / "run.yaml").write_text(dump(resolve(job, settings, job=kind)), encoding="utf-8")
        return folder, launch_worker(folder)

    return begin


def test_evaluation(launch, tiny_data):
    folder, process = launch("evaluation", evaluated={"folder": str(tiny_data), "set": "orders", "max_rows": 5},
                             generation={"max_new_tokens": 4})  # fmt: skip
    assert process.wait(120) == 0
    end = fold(folder)[0].end
    assert end["cause"] == "done" and end["metrics"] == json.loads((folder / "metrics.json").read_text())
    assert list(end["metrics"]) == ["base", "tuned"]


def test_chat(launch):
    folder, process = launch("serving")
    while not (there := endpoint(folder)) and process.poll() is None:
        time.sleep(0.05)
    request = {"messages": [{"role": "user", "content": "two pen"}], "max_tokens": 5}
    for name in there.models:
        assert "".join(stream(there, {"model": name, **request}))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 20
    assert fold(folder)[0].end["cause"] == "stopped" and endpoint(folder) is None
