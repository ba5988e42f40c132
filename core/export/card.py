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
JUDGED = {
    "rewards/mean": "what an answer earned",
    "rewards/accuracies": "share of the comparisons that it gets right",
    "rewards/margins": "what a better answer earns more than a worse one",
    "objective/kl": "nats between it and the model as it was",
}
"""What tells how good a model is beside its loss, in words."""
ADAPTER = """from peft import PeftModel
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
model = {auto}.from_pretrained({base}){grown}
model = PeftModel.from_pretrained(model, "PATH OF THIS FOLDER")"""
WHOLE = """from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
model = {auto}.from_pretrained("PATH OF THIS FOLDER")"""

REWARD = """

import torch
from safetensors.torch import load_file

head = load_file("PATH OF THIS FOLDER/value_head.safetensors")


def reward(question, answer):
    turns = [{{"role": "user", "content": question}}, {{"role": "assistant", "content": answer}}]
    row = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    with torch.inference_mode():
        states_T_D = model(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[-1][0]
    end = max((at for at, answers in enumerate(row["assistant_masks"]) if answers), default=-1)
    return float(head["weight"][0] @ states_T_D[end].float() + head["bias"][0])"""
JUDGE = """
This is a reward model: it tells what an answer is worth, the higher the better, and is not made to answer. The number
is a line over the last hidden state at the end of the answer; weight and bias are in `value_head.safetensors`.
"""
LEGEND = "\nFigures called *Eval* are of held-out rows, the others of the last step of the training.\n"


def exported(job: Export, adapter: Path | None, model: str, metrics: dict[str, Any], *, sees: bool,
             code: Code | None = None) -> str:  # fmt: skip
    """Return the card of an exported model; code: what the model brings of its own."""
    run = _run_of((adapter or Path(model)).parent)
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
    page = _page(job.name, facts, base, "transformers", _task(run, sees=sees))
    return page + (_loading(run, whole=True, sees=sees) if run and run.stage.heads else "")


def trained(run: Run, metrics: dict[str, Any], *, whole: bool, sees: bool) -> str:
    """Return the card of what a run has saved; whole: a model of its own, no adapter."""
    steps = f"{metrics.get('saved_step', metrics['step'])} of {metrics['step']}"
    facts = {
        "Base": run.model.path,
        **_lesson(run),
        "Held out": ", ".join(run.data.eval) or ("" if run.stage.draws else f"{run.data.eval_share:g} of the rows"),
        "Optimizer": f"{run.optimizer.kind}, learning rate {run.optimizer.model_dump().get('learning_rate')}",
        "Steps": f"{steps}, each of {run.training.batch_size} x {run.training.accumulation}; "
        f"{metrics['epoch']:.3g} epochs, {metrics['tokens']:,} tokens",
        **_figures(run, metrics),
    }
    settings = run.model_dump(mode="json", include={"stage", "tuner", "optimizer", "training"})
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    page = _page(run.name, facts, run.model.path, "transformers" if whole else "peft", _task(run, sees=sees))
    return f"{page}{LEGEND}{_loading(run, whole=whole, sees=sees)}\n## Settings\n```yaml\n{text}```\n"


def _loading(run: Run, *, whole: bool, sees: bool) -> str:
    """Return how to load what a run has saved, and how to ask it where it is a reward model."""
    code = (WHOLE if whole else ADAPTER) + (REWARD if run.stage.heads else "")
    code = code.format(
        auto="AutoModelForImageTextToText" if sees else "AutoModelForCausalLM", base=repr(run.model.path),
        grown="\nmodel.resize_token_embeddings(len(tokenizer))" if run.model.added else "",
    )  # fmt: skip
    return f"{JUDGE if run.stage.heads else ''}\n## How to load it\n```python\n{code}\n```\n"


def _figures(run: Run, metrics: dict[str, Any]) -> dict[str, str]:
    """Return what a run is judged by, of held-out rows where it was measured on them.

    Losses of stages that draw their answers say nothing: they are about 0 whatever is learned.
    """
    told = {}
    for name, value in metrics.items():
        of_held_out = any(other.startswith("eval_") and other.endswith(f"_{name}") for other in metrics)
        word = next((word for end, word in JUDGED.items() if name.endswith(end) and not of_held_out), "")
        if isinstance(value, float) and (word or ("loss" in name and not run.stage.draws)):
            label = name.replace("_", " ").capitalize()
            told[label] = f"{value:.4g}" + (f", {word}" if word else "")
    return told


def _lesson(run: Run) -> dict[str, str]:
    return {"Data": ", ".join(run.data.train), "Lesson": run.stage.kind, "Method": run.tuner.kind}


def _task(run: Run | None, *, sees: bool) -> str:
    """Return what the hub calls a task."""
    if run and run.stage.heads:
        return "text-classification"
    return "image-text-to-text" if sees else "text-generation"


def _page(title: str, facts: dict[str, str], base: str, library: str, task: str) -> str:
    """Return Markdown with the hub's YAML header; facts that are empty are left out."""
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
