"""The README of what was trained or exported: what it was made of, so that the folder explains itself."""

from __future__ import annotations

import re
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from core.config import Export, Run, load
from core.errors import InputError
from core.models.consent import Code

LIBRARIES = ("torch", "transformers", "peft")
MARKUP = re.compile(r"[\\`*|~\[\]]")
"""What Markdown would take for more than text, beside HTML."""
ADAPTER = """from peft import PeftModel
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
model = {auto}.from_pretrained({base}){grown}
model = PeftModel.from_pretrained(model, "PATH OF THIS FOLDER")"""
WHOLE = """from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
model = {auto}.from_pretrained("PATH OF THIS FOLDER")"""


def exported(job: Export, adapter: Path | None, model: str, metrics: dict[str, Any], *, sees: bool,
             code: Code | None = None) -> str:  # fmt: skip
    """Return the card of an exported model; code: what the model brings of its own."""
    run = _run_of(adapter.parent) if adapter else None
    base = job.model.path if adapter else ""
    facts = {"Base": base, "Exported from": job.source if adapter else model}
    if run:
        facts |= {"Run": run.name, **_lesson(run)}
    facts |= {
        "Parameters": f"{metrics['parameters']:,}",
        "Read back and compared": f"largest difference of a logit {metrics['difference']:.3g}, "
        f"by merging and rounding {metrics['rounding']:.3g}, largest logit {metrics['largest']:.3g}",
        "Code of its own": f"{', '.join(code.files)}: whoever loads the model runs it (trust_remote_code). "
        f"Copied as it came, sha256 {code.sha}"
        if code
        else "",
    }
    return _page(job.name, facts, base, "transformers", sees=sees)


def trained(run: Run, metrics: dict[str, Any], *, whole: bool, sees: bool) -> str:
    """Return the card of what a run has saved; whole: a model of its own, no adapter."""
    told = {name: f"{value:.4g}" for name, value in metrics.items() if isinstance(value, float) and "loss" in name}
    steps = f"{metrics.get('saved_step', metrics['step'])} of {metrics['step']}"
    facts = {
        "Base": run.model.path,
        **_lesson(run),
        "Held out": ", ".join(run.data.eval) or ("" if run.stage.draws else f"{run.data.eval_share:g} of the rows"),
        "Optimizer": f"{run.optimizer.kind}, learning rate {run.optimizer.model_dump().get('learning_rate')}",
        "Steps": f"{steps}, each of {run.training.batch_size} x {run.training.accumulation}; "
        f"{metrics['epoch']:.3g} epochs, {metrics['tokens']:,} tokens",
        **{name.replace("_", " ").capitalize(): value for name, value in told.items()},
    }
    settings = run.model_dump(mode="json", include={"stage", "tuner", "optimizer", "training"})
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    code = (WHOLE if whole else ADAPTER).format(
        auto="AutoModelForImageTextToText" if sees else "AutoModelForCausalLM", base=repr(run.model.path),
        grown="\nmodel.resize_token_embeddings(len(tokenizer))" if run.model.added else "",
    )  # fmt: skip
    page = _page(run.name, facts, run.model.path, "transformers" if whole else "peft", sees=sees)
    return f"{page}\n## How to load it\n```python\n{code}\n```\n\n## Settings\n```yaml\n{text}```\n"


def _lesson(run: Run) -> dict[str, str]:
    return {"Data": ", ".join(run.data.train), "Lesson": run.stage.kind, "Method": run.tuner.kind}


def _page(title: str, facts: dict[str, str], base: str, library: str, *, sees: bool) -> str:
    """Return Markdown with the hub's YAML header; facts that are empty are left out."""
    task = "image-text-to-text" if sees else "text-generation"
    header = {"library_name": library, "pipeline_tag": task, "tags": ["tuneboard"]}
    header |= {"base_model": base} if base else {}
    facts = facts | {"Made with": ", ".join(f"{name} {version(name)}" for name in LIBRARIES)}
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value)
    return f"---\n{yaml.safe_dump(header, allow_unicode=True)}---\n# {title}\n\n| | |\n|---|---|\n{rows}\n"


def _run_of(folder: Path) -> Run | None:
    """Return the training run of a folder; None where it is none, for an adapter from elsewhere."""
    settings = folder / "run.yaml"
    if not settings.exists():
        return None
    try:
        job = load(settings.read_text(encoding="utf-8"), "run.yaml")
    except InputError:  # a run of another version of Tuneboard: the card does without it
        return None
    return job if isinstance(job, Run) else None


def _cell(value: str) -> str:
    """Return a text as Markdown that shows it as it is, in one cell of a table."""
    return MARKUP.sub(r"\\\g<0>", " ".join(escape(value, quote=False).splitlines()))
