"""The process that starts what waits is killed again and again: every run is started once, in its turn."""

import random
import time

import psutil
import pytest

from core import config, queue, runs
from core.events import tail

pytestmark = pytest.mark.faults
COUNT = 6


def started(folder):
    return [event["time"] for event in tail(folder) if event["type"] == "started"]


@pytest.mark.parametrize("seed", range(1))
def test_killed_at_any_moment_nothing_is_lost_or_started_twice(tiny_model, tiny_data, tmp_path, seed):
    layer = {
        "model": {"path": str(tiny_model)},
        "data": {"folder": str(tiny_data), "train": ["orders"]},
        "hardware": {"device": "cpu", "threads": 1},
    }
    folders = [runs.create(config.resolve(layer), tmp_path) for _ in range(COUNT)]
    chance, kills, deadline = random.Random(seed), 0, time.monotonic() + 240
    queue.add(folders, tmp_path)
    while not all(map(started, folders)) or any(runs.look(folder).active for folder in folders):
        assert time.monotonic() < deadline, [runs.look(folder).status for folder in folders]
        time.sleep(chance.uniform(0.1, 4))
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [])[1:] == ["-m", "core.queue", str(tmp_path)]:
                process.kill()
                kills += 1
        for folder in folders:
            if started(folder):
                runs.stop(folder)  # it has shown that it lives; a second time ends it at once
        queue.wake(tmp_path)
    assert kills > 2
    assert [len(started(folder)) for folder in folders] == [1] * COUNT
    assert sorted(folders, key=started) == folders and not runs.waiting(tmp_path)
    assert {runs.look(folder).status for folder in folders} <= {"stopped", "killed"}
