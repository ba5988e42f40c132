"""What the model of a training run answers, as HTML: the newest answer to each held-out question, or what it drew."""

from __future__ import annotations

from html import escape

from app.i18n import number, tr
from core.runs import View

COLUMNS = ("question", "reference")


def newest(view: View) -> float:
    """Return when the newest sample was written; 0 where there is none, and for jobs that answer in another way."""
    samples = view.state.samples
    return samples[-1]["time"] if samples and "step" in samples[-1] else 0.0


def samples(language: str, view: View) -> str:
    """Return a table of questions, right answers and the model's own; "" where nothing was asked."""
    if not newest(view):
        return ""
    last = view.state.samples[-1]
    drawn = "reward" in last  # each time to other questions
    latest = {s["index"]: s for s in view.state.samples if not drawn or s["step"] == last["step"]}
    step = number(language, last["step"])
    labels = [escape(tr(language, f"ui.evaluate.{key}")) for key in COLUMNS]
    labels.append(escape(tr(language, "ui.live.answer", step=step)))
    if drawn:
        labels.append(escape(tr(language, "ui.metric.rewards_mean")))
    head = "".join(f"<th>{label}</th>" for label in ["#", *labels])
    body = ""
    for index, sample in sorted(latest.items()):
        texts = [sample["prompt"], sample["reference"], sample["answer"]]
        if drawn:
            texts.append(number(language, sample["reward"]))
        named = zip(labels, texts, strict=True)
        cells = "".join(f'<td data-label="{label}">{_text(text)}</td>' for label, text in named)
        body += f"<tr><td>{index + 1}</td>{cells}</tr>"
    title = f"<h3>{escape(tr(language, 'ui.live.samples'))}</h3>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'{title}<div class="tb-table tb-answers" tabindex="0">{table}</div>'


def _text(text: str) -> str:
    return f'<div class="tb-text" dir="auto">{escape(text)}</div>'
