"""What one tick of the live panel costs, in CPU and in bytes, after a thousand steps and after a million.

`python bench/live.py` prints a table; exit status 1 where a tick costs more than 5 ms or 20 KB, or grows more than
fivefold. In the same run: what telling of one step costs the training, and what gradio's own LinePlot would send for
every point of 10^5 steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.lean import gr  # isort: skip
from app.live import Live, Seen
from app.page import Page
from core import config, runs
from core.events import FILE, SNAPSHOT, RunState

SIZES = (10**3, 10**4, 10**5, 10**6)
TICKS, LOGS = 50, 1000
MILLISECONDS, BYTES, GROWTH = 5.0, 20_000, 5.0
NOW = 1_700_000_000.0


def step(number: int, total: int) -> dict:
    """Return the event of one step, as the trainer writes it."""
    loss = 0.2 + 3.0 / (1 + number / total * 40) + 0.05 * ((number * 7919) % 101 - 50) / 50
    return {
        "type": "step", "time": NOW + number * 0.2, "step": number, "total": total, "epoch": 0.1, "loss": loss,
        "lr": 2e-4 * (1 - number / total), "grad_norm": 1.0 + (number % 13) / 20,
        "tokens_per_second": 3000.0 + number % 97, "memory": 650_000_000 + number % 1000,
    }  # fmt: skip


def written(workspace: Path, steps: int) -> Path:
    """Make the folder of a run that is in its middle after so many steps, with a snapshot as its Writer leaves them."""
    folder = runs.create(config.resolve({"name": f"run-{steps}"}), workspace)
    state, total = RunState(), 2 * steps
    head = [
        {"type": "started", "time": NOW, "job": "train"},
        {"type": "phase", "time": NOW, "phase": "train", "total": total},
    ]
    with (folder / FILE).open("w", encoding="utf-8") as file:
        for event in head + [step(number, total) for number in range(1, steps + 1)]:
            file.write(json.dumps(event) + "\n")
            state.apply(event)
    size = (folder / FILE).stat().st_size
    (folder / SNAPSHOT).write_text(json.dumps({"offset": size, "state": state.dump()}), encoding="utf-8")
    (folder / "console.log").write_text("step 1  loss 3.2\n" * 400, encoding="utf-8")
    return folder


def panel(workspace: Path) -> Live:
    """Return a live panel outside any page."""
    with gr.Blocks():
        with gr.Tabs() as tabs:
            page = Page(
                workspace,
                gr.State("en"),
                gr.State(""),
                tabs,
                gr.State(("", 0)),
                gr.State(("", 0)),
                gr.State(("", "", 0)),
            )
        return Live(page)


def measure(live: Live, folder: Path, steps: int) -> tuple[float, float, int]:
    """Return (CPU ms of opening the run, CPU ms of a tick with one new step, bytes that the tick sends)."""
    begun = time.process_time()
    seen = live.tick(folder.name, "en", Seen())[-1]
    opened = (time.process_time() - begun) * 1e3
    spent, sent = 0.0, 0
    with (folder / FILE).open("a", encoding="utf-8") as file:
        for extra in range(1, TICKS + 1):
            file.write(json.dumps(step(steps + extra, 2 * steps)) + "\n")
            file.flush()
            begun = time.process_time()
            answer = live.tick(folder.name, "en", seen)
            spent += time.process_time() - begun
            seen, sent = (
                answer[-1],
                max(sent, len(json.dumps([part for part in answer if not isinstance(part, Seen)], default=str))),
            )
    return opened, spent / TICKS * 1e3, sent


def told(folder: Path, steps: int) -> float:
    """Return the CPU ms that it costs a training to tell of one step, every step, after so many."""
    from core.events import Writer
    from core.training.watch import Watch
    from core.workspace import Context

    context = Context(folder, folder.parents[1], Writer(folder), threading.Event())
    nothing: Any = None
    watch = Watch(context, config.run(), nothing, 0, nothing, None)
    control, optimizer = SimpleNamespace(should_save=False), SimpleNamespace(step_was_skipped=False)
    with open(os.devnull, "w") as console, contextlib.redirect_stdout(console):
        begun = time.process_time()
        for extra in range(1, LOGS + 1):
            state: Any = SimpleNamespace(global_step=steps + extra, max_steps=2 * steps, log_history=[],
                                         num_input_tokens_seen=1000 * (steps + extra))  # fmt: skip
            logs = {"loss": 0.2 + 1 / extra, "learning_rate": 1e-4, "grad_norm": 1.0, "epoch": 0.5}
            watch.on_log(nothing, state, control, logs=logs, optimizer=optimizer)
        spent = time.process_time() - begun
    context.events.close()
    return spent / LOGS * 1e3


def peer(steps: int) -> tuple[float, int]:
    """Return (CPU ms, bytes) of a LinePlot with every point."""
    import pandas

    rows = [step(number, steps) for number in range(1, steps + 1)]
    frame = pandas.DataFrame({"step": [row["step"] for row in rows], "loss": [row["loss"] for row in rows]})
    with gr.Blocks():
        plot = gr.LinePlot(x="step", y="loss")
    begun = time.process_time()
    payload = plot.postprocess(frame)
    text = payload.model_dump_json() if payload else ""
    return (time.process_time() - begun) * 1e3, len(text)


def main() -> int:
    results = {}
    with tempfile.TemporaryDirectory() as place:
        live = panel(Path(place))
        print(f"{'steps':>9}  {'open ms':>8}  {'tick ms':>8}  {'bytes':>8}  {'told ms':>8}")
        for steps in SIZES:
            folder = written(Path(place), steps)
            results[steps] = opened, tick, sent = measure(live, folder, steps)
            print(f"{steps:>9,}  {opened:>8.2f}  {tick:>8.2f}  {sent:>8,}  {told(folder, steps):>8.3f}")
    growth = results[SIZES[-1]][1] / results[SIZES[0]][1]
    print(f"a tick after 10^6 steps costs {growth:.2f} times one after 10^3")
    spent, sent = peer(10**5)
    print(f"gr.LinePlot with all of 10^5 points: {spent:.0f} ms, {sent:,} bytes")
    within = all(tick <= MILLISECONDS and size <= BYTES for _, tick, size in results.values()) and growth <= GROWTH
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
