"""A model and whether its run will fit into memory, in words: the verdict, what it rests on, what helps. No gradio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from app.i18n import duration, message, number, size, tr
from core import config
from core.errors import Problem
from core.forecast import Fix, Forecast, unforeseen
from core.models.inspect import ModelFacts
from core.models.registry import Entry

PARTS = ("weights", "learning", "gradients", "optimizer", "activations", "logits", "passing", "heap", "drawing",
         "runtime")  # fmt: skip
"""What a plan is made of, in the order in which it is told."""


def model_told(language: str, known: ModelFacts | Entry | None) -> str:
    """Return what is known of a model as HTML: one line."""
    facts = model_facts(language, known)
    return f'<p class="tb-known">{escape(" · ".join(facts))}</p>' if facts else ""


def model_facts(language: str, known: ModelFacts | Entry | None) -> list[str]:
    """Return what kind of model it is, its size, its longest input, and whatever needs attention."""

    def say(key: str, **given: str) -> str:
        return tr(language, f"ui.fit.model.{key}", **given)

    if known is None:
        return []
    context = [say("context", tokens=number(language, known.context))] if known.context else []
    if isinstance(known, Entry):
        count = [say("billions", count=number(language, known.parameters))] if known.parameters else []
        reads = [say(f"reads_{sense}") for sense in known.modality if sense != "text"]
        return [known.id, known.type, *count, *context, *reads, *([say("gated")] if known.gated else [])]
    weights = {"count": number(language, known.parameters), "bytes": size(language, known.bytes), "dtype": known.dtype}
    return [
        known.architecture or known.model_type,
        size(language, known.bytes) if known.packed else say("weights", **weights),
        *context,
        say("template" if known.chat_template else "no_template"),
        *([say("packed", method=known.packed)] if known.packed else []),
        *([say("senses")] if known.senses else []),
    ]


def unknown(language: str, run: config.Run, workspace: Path) -> str:
    """Return as HTML that nothing can be said of the memory, and why."""
    why = unforeseen(run, workspace)
    return f'<p class="tb-known">{escape(message(language, why.code, why.params))}</p>'


def problem_told(language: str, problem: Problem) -> str:
    """Return as HTML why a run with this model would be refused."""
    return f'<div class="tb-error" role="alert">{escape(message(language, problem.code, problem.params))}</div>'


def brief(language: str, found: Forecast) -> str:
    """Return a verdict in a few words as HTML; "" where all is well."""
    if found.verdict == "fits":
        return ""
    peak, free = size(language, found.plan.peak), size(language, found.room.free)
    told = tr(language, f"ui.fit.brief.{found.verdict}", peak=peak, free=free)
    kind = {"tight": "warning", "too_large": "error"}[found.verdict]
    return f'<span class="tb-brief-{kind}">{escape(told)}</span>'


def tell(language: str, run: config.Run, found: Forecast, epoch: float | None) -> str:
    """Return the verdict as HTML: one line; what it is made of and what learns, to unfold."""
    line = escape(" ".join(lines(language, run, found, epoch)))
    kind = {"fits": "fits", "tight": "warning", "too_large": "error"}[found.verdict]
    role = "status" if found.verdict == "fits" else "alert"
    made_of = _unfold(tr(language, "ui.fit.made_of"), parts(language, found))
    learns = _unfold(trained(language, found), modules(language, found))
    return f'<div class="tb-fit tb-{kind}" role="{role}">{line}{made_of}{learns}</div>'


def _unfold(title: str, rows: Iterable[tuple[str, str]]) -> str:
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(told)}</dd>" for name, told in rows)
    return f"<details><summary>{escape(title)}</summary><dl>{listed}</dl></details>"


def parts(language: str, found: Forecast) -> list[tuple[str, str]]:
    """Return name and size of each part of a plan that takes anything."""
    sizes = {part: getattr(found.plan, part) for part in PARTS}
    return [(tr(language, f"ui.fit.{part}"), size(language, taken)) for part, taken in sizes.items() if taken]


def lines(language: str, run: config.Run, found: Forecast, epoch: float | None) -> list[str]:
    """Return the verdict, on what it rests, and how long an epoch takes, as far as that is known."""
    device = tr(language, f"ui.fit.on.{found.room.device}")
    peak, free = size(language, found.plan.peak), size(language, found.room.free)
    rows = run.stage.together(run.training.batch_size)
    batch = {"rows": number(language, rows), "tokens": number(language, found.plan.tokens // rows)}
    told = [
        tr(language, f"ui.fit.{found.verdict}", peak=peak, free=free, device=device),
        tr(language, "ui.fit.batches", **batch),
    ]
    if found.verdict == "too_large" and not found.fixes:
        told.append(tr(language, "ui.fit.nothing_helps"))
    if epoch is not None:
        told.append(tr(language, "ui.fit.epoch", time=duration(language, epoch)))
    return told


def trained(language: str, found: Forecast) -> str:
    """Return how many weights learn."""
    planned = found.plan
    share = number(language, 100 * planned.trainable / max(planned.parameters, 1))
    names = {"trainable": number(language, planned.trainable), "parameters": number(language, planned.parameters)}
    return tr(language, "ui.fit.trained", share=share, **names)


def modules(language: str, found: Forecast) -> list[tuple[str, str]]:
    """Return each kind of module that learns, and how many weights in all of that kind."""
    return [(kind, number(language, count)) for kind, count in found.plan.modules.items()]


def advice_told(language: str, patch: Mapping[str, Any]) -> str:
    """Return which settings suit the model."""
    return tr(language, "ui.fit.suits", change=changes(language, patch))


def fix_told(language: str, fix: Fix) -> str:
    """Return what a change does, and what the run takes then."""
    return tr(language, "ui.fit.fix", change=changes(language, fix.patch), peak=size(language, fix.plan.peak))


def changes(language: str, patch: Mapping[str, Any]) -> str:
    """Return the settings of a change by their names."""
    paths = {setting.key: setting.path for setting in config.known_settings(config.Run)}
    told = []
    for key, value in patch.items():
        label = tr(language, f"field.{paths[key]}.label")
        if isinstance(value, dict):
            shown = tr(language, f"choice.{key}.{value['kind']}.label")
        elif isinstance(value, str):
            shown = value
        else:
            shown = tr(language, "ui.fit.turned_on") if value is True else number(language, value)
        told.append(f"{label}: {shown}")
    return ", ".join(told)
