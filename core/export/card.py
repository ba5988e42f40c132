"""The README of an exported model: what it was made of, so that the folder explains itself."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from core.config import Export, Run, load
from core.errors import InputError

LIBRARIES = ("torch", "transformers", "peft")


def card(job: Export, adapter: Path | None, model: str, metrics: dict[str, Any]) -> str:
    """Return the card as Markdown with the hub's YAML header."""
    run = _run_of(adapter) if adapter else None
    base = job.model.path if adapter else ""
    header = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["tuneboard"]}
    header |= {"base_model": base} if base else {}
    facts = {"Base": base, "Exported from": job.source if adapter else model}
    if run:
        learned = ", ".join(run.data.train)
        facts |= {"Run": run.name, "Data": learned, "Lesson": run.stage.kind, "Method": run.tuner.kind}
    facts |= {
        "Parameters": f"{metrics['parameters']:,}",
        "Read back and compared": f"largest difference of a logit {metrics['difference']:.3g}, "
        f"by merging and rounding {metrics['rounding']:.3g}, largest logit {metrics['largest']:.3g}",
        "Made with": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value)
    return f"---\n{yaml.safe_dump(header, allow_unicode=True)}---\n# {job.name}\n\n| | |\n|---|---|\n{rows}\n"


def _run_of(adapter: Path) -> Run | None:
    """Return the training run in whose folder the adapter lies; None for an adapter from elsewhere."""
    settings = adapter.parent / "run.yaml"
    if not settings.exists():
        return None
    try:
        job = load(settings.read_text(encoding="utf-8"), "run.yaml")
    except InputError:  # a run of another version of Tuneboard: the card does without it
        return None
    return job if isinstance(job, Run) else None


def _cell(value: str) -> str:
    """Keep a text from breaking out of its table cell."""
    return value.replace("|", "\\|").replace("\n", " ")
