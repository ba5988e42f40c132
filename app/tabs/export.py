"""Export: merge an adapter into its base as a background job, prove that it is the same model, say how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app import jobtab
from app.form import Form
from app.i18n import number, size, tr
from app.jobtab import Bench
from app.page import Page
from core import config
from core.models.inspect import PROCESSORS
from core.runs import View

KEY, ORDER = "export", 40
CARDS = {"source": ("source", "model", "folder", "shard_gb"), "hardware": ("hardware",)}
PYTHON = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{{"role": "user", "content": "Hello!"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))"""

SEEING = """\
from transformers import AutoModelForMultimodalLM, AutoProcessor

folder = {folder}
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForMultimodalLM.from_pretrained(folder)
parts = [{{"type": "image", "path": "image.png"}}, {{"type": "text", "text": "What is it?"}}]
inputs = processor.apply_chat_template([{{"role": "user", "content": parts}}], tokenize=True, return_tensors="pt",
                                       add_generation_prompt=True, return_dict=True)
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))"""


def build(page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and wire it."""
    with gr.Row(elem_classes=["tb-workbench"]):
        form, start, stop = jobtab.form_part(
            page, KEY, lambda: Form(page, config.Export, skip=("name", "model.quantizer"), cards=CARDS)
        )
        with gr.Column(elem_classes=["tb-live"]):
            shown, progress = jobtab.shown_part(page, KEY)
            facts = gr.HTML(elem_id="tb-export-table", visible=False)
            with gr.Column(visible=False, elem_id="tb-export-use") as use:
                page.say(gr.HTML(elem_classes=["tb-heading"]), value="ui.export.use")
                codes = [_code(page, name) for name in USES]
    bench = Bench(form, start, stop, shown, progress, gr.Timer(jobtab.TICK_SECONDS, active=False))
    jobtab.wire(page, KEY, bench, _result, [facts, use, *codes])
    jobtab.follow_base(page, form, "source")
    jobtab.follow_wish(page, form, "source", tab)


USES = ("transformers", "vllm", "chat")


def _code(page: Page, name: str) -> gr.Code:
    # no language: gradio's colours for code are too pale on paper
    code = gr.Code(
        language=None, interactive=False, lines=1, wrap_lines=True, show_line_numbers=False, buttons=["copy"],
        elem_id=f"tb-export-{name}",
    )  # fmt: skip
    return page.say(code, label=f"ui.export.{name}")


def _result(language: str, view: View | None) -> Sequence[Any]:
    """Return the updates of the result: what was written and proved, and how to use it."""
    metrics = (view.state.end or {}).get("metrics", {}) if view and view.status == "done" else {}
    if not metrics:
        return [gr.update(visible=False)] * 2 + [gr.update()] * len(USES)
    folder = str(metrics["folder"])
    return [
        gr.update(value=_facts(language, metrics), visible=True),
        gr.update(visible=True),
        (SEEING if any((Path(folder) / name).is_file() for name in PROCESSORS) else PYTHON).format(
            folder=json.dumps(folder, ensure_ascii=False)
        ),
        f"vllm serve {shlex.quote(folder)}",
        f"tuneboard chat --model {shlex.quote(folder)}",
    ]


def _facts(language: str, metrics: dict[str, Any]) -> str:
    """Return the proof in words and the facts of what was written."""
    said = {name: number(language, metrics[name]) for name in ("difference", "rounding", "largest")}
    proof = tr(language, "ui.export.proved", **said)
    if metrics["rounding"]:
        proof += " " + tr(language, "ui.export.rounding", **said)
    facts = {
        "folder": f"<code>{escape(str(metrics['folder']))}</code>",
        "size": escape(size(language, metrics["bytes"])),
        "parameters": escape(number(language, metrics["parameters"])),
    }
    rows = "".join(
        f'<tr><th scope="row">{escape(tr(language, f"ui.export.{key}"))}</th><td>{value}</td></tr>'
        for key, value in facts.items()
    )
    return f'<p class="tb-proof">✓ {escape(proof)}</p><div class="tb-table"><table><tbody>{rows}</tbody></table></div>'
