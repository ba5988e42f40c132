"""`python -m tests.core.several JOBS`: as one of several processes, do what core.worker does for one run after another.

JOBS is a JSON file with [run folder, step to stop at or null] each. The libraries are loaded once for all of them.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from pathlib import Path

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from core import config
from core.crew import Crew, Plan
from core.errors import Stopped
from core.events import Silent
from core.team import Team
from core.workspace import Context
from tests.core.helpers import StoppingWriter


def together(
    folders: list[tuple[Path, int | None]], processes: int = 2, seconds: float = 400, *, divides: bool = False
) -> str:
    """Do the runs in processes of their own; return what these have printed. Raises AssertionError when they fail."""
    place = folders[0][0].parent
    jobs = place / "jobs.json"
    jobs.write_text(json.dumps([(str(folder), stop) for folder, stop in folders]))
    crew = Crew(place, [str(jobs)], Plan(processes, divides=divides, module="tests.core.several"))
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(crew.output.read()), daemon=True)
    reader.start()
    waited = 0.0
    while (status := crew.wait(0.2)) is None and waited < seconds:
        waited += 0.2
    crew.kill()
    reader.join(10)
    said = b"".join(heard).decode()
    assert status == 0, said
    return said


def train(folder: Path, stop_at: int | None, team: Team) -> None:
    job = config.load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
    assert isinstance(job, config.Run)
    stop = threading.Event()
    events = StoppingWriter(folder, stop, stop_at) if team.rank == 0 else Silent(folder)
    with contextlib.suppress(Stopped):
        job.stage.train(job, Context(folder, folder.parents[1], events, stop, team))
    events.close()


def main(jobs: Path) -> None:
    team = Team.called()
    listed = json.loads(jobs.read_text())
    first = config.load((Path(listed[0][0]) / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
    team.join(jobs.parent, first.hardware, divides=any(first.launcher.divides))
    for folder, stop_at in listed:
        unset_hf_deepspeed_config()  # a second run in one process would load its model as the first was divided
        train(Path(folder), stop_at, team)
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
