"""`tuneboard demo --headless`: teach the demo model a skill, and show what it answers before and after."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from app import i18n
from app.answers import BASE, SHOWN, best, measured, rows
from app.cli_follow import finish, start
from app.cli_speak import Answer, language, note, number, plain, say
from core import config

SAMPLES = 4


def demonstrate(job: config.Job, workspace: Path, answer: Answer) -> None:
    """Train, evaluate base and tuned on the held-out set, print the table before and after."""
    run = start(job, workspace, answer)
    finish(run, False, answer)
    if answer.status:
        return
    asked = {"name": f"{run.name}-evaluation", "tuned": [run.name], "model": job.model.model_dump()}
    evaluation = start(config.resolve(asked, job="evaluation"), workspace, answer)
    finish(evaluation, False, answer)
    if answer.status:
        return
    metrics = measured(evaluation)
    answer.fields |= {"job": "demo", "run": str(run), "evaluation": str(evaluation), "metrics": metrics}
    answer.show()
    answer.show(measures(metrics, {BASE: say("demo.base"), run.name: say("demo.tuned")}))
    answer.show()
    answer.show(_samples(evaluation, run.name))
    note(say("demo.again", run=run.name))


def measures(metrics: dict[str, dict[str, float | None]], names: dict[str, str] | None = None) -> Table:
    """Return the table of measures: a column for each model under its name, the best value marked."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(say("demo.measure"))
    for subject in metrics:
        table.add_column((names or {}).get(subject, subject), justify="right", overflow="fold")
    for metric in (name for name in SHOWN if any(name in row for row in metrics.values())):
        winners = best(metrics, metric)
        cells = [number(row.get(metric)) + (" ✓" if name in winners else "  ") for name, row in metrics.items()]
        table.add_row(i18n.tr(language(), f"ui.evaluate.metric.{metric}"), *cells)
    return table


def _samples(evaluation: Path, tuned: str) -> Table:
    """Return the table of some answers side by side."""
    table = Table(title=say("demo.samples"), title_justify="left", show_lines=True)
    for name in ("question", "reference", "base", "tuned"):
        table.add_column(say(f"demo.{name}"), overflow="fold", ratio=1)
    for row in rows(evaluation, count=SAMPLES):
        given = [row["answers"][BASE], row["answers"][tuned]]
        table.add_row(*(_cell(text) for text in (row["prompt"], row["reference"], *given)))
    return table


def _cell(text: str) -> str:
    """Return a text as it stands: what looks like markup of rich is not read as such."""
    return plain(text).replace("[", r"\[")
