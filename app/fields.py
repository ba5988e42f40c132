"""One setting as one gradio component: which widget, what it offers, its texts, and its value there and back."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components import Component

from app.i18n import find, message, number, tr
from core.errors import Problem
from core.schema import Setting, variants

SLIDER_STEPS = 64
"""A whole number with at most so many values is set by a slider."""
RADIO_KINDS = 4
"""A choice of at most so many kinds is laid open."""
MARKUP = str.maketrans({"*": "∗", "`": "'", "[": "(", "]": ")"})
"""Gradio's info knows a little markdown, without a way to escape it; these would be taken for it."""


def element_id(job: str, path: str) -> str:
    """The id of a field on the page: f-train-tuner-lora-rank."""
    return f"f-{job}-{path.replace('.', '-')}"


def make(setting: Setting, job: str, value: Any = None) -> Component:
    """Return the component of a setting with its English texts; value: what it shows first, by default the default.

    A `pick` field offers nothing until it is asked: the page copies all that a field offers with every event.
    """
    annotation, limits = setting.info.annotation, setting.limits
    value = setting.default if value is None else value
    common: dict[str, Any] = {"value": value, "elem_id": element_id(job, setting.path), "interactive": True}
    common |= texts("en", setting)
    if setting.union:
        kinds = list(variants(setting.union.package))
        widget = gr.Radio if len(kinds) <= RADIO_KINDS else gr.Dropdown
        # A choice of one is no choice: the field is there, but nobody needs to look at it.
        return widget(**common, visible=len(kinds) > 1, elem_classes=["tb-wide"])
    if annotation is bool:
        return gr.Checkbox(**common, elem_classes=["tb-wide"])
    if get_origin(annotation) is Literal:
        return gr.Dropdown(filterable=False, **common)
    if get_origin(annotation) is list:
        known = list(get_args(get_args(annotation)[0])) or value  # of a list of literals all that there are
        return gr.Dropdown(known, multiselect=True, allow_custom_value=True, **common, elem_classes=["tb-wide"])
    if setting.pick:
        return gr.Dropdown([], allow_custom_value=True, **common, elem_classes=["tb-wide"])
    if annotation in (int, float):
        low, high = limits.get("ge"), limits.get("le", limits.get("lt"))
        if annotation is int and low is not None and high is not None and high - low < SLIDER_STEPS:
            return gr.Slider(low, high, step=1, **common)
        # Without minimum and maximum: gradio would refuse in English, in a toast, before our own words come up.
        return gr.Number(**common, step=1 if annotation is int else 0.01)
    return gr.Textbox(**common, max_lines=1, elem_classes=["tb-wide"])


def texts(language: str, setting: Setting, problem: Problem | None = None) -> dict[str, Any]:
    """Return label, info and (for a choice) the names of what there is; a problem stands in front of the help."""
    info = f"{_text(tr(language, f'field.{setting.path}.help'))} `{setting.key}`"
    if problem:
        info = f"**{_text(said(language, problem))}**\n{info}"
    found: dict[str, Any] = {"label": tr(language, f"field.{setting.path}.label"), "info": info}
    if setting.union:
        kinds = sorted(variants(setting.union.package), key=lambda kind: kind != setting.default)  # the usual one first
        found["choices"] = [(tr(language, f"choice.{setting.path}.{kind}.label"), kind) for kind in kinds]
    elif get_origin(setting.info.annotation) is Literal:
        found["choices"] = [(_choice(language, value), value) for value in get_args(setting.info.annotation)]
    return found


def _choice(language: str, value: Any) -> str:
    """Return a value in words, with itself, as YAML and the help call it."""
    word = _word(language, value)
    return word if word == str(value) else f"{word} ({value})"


def _word(language: str, value: Any) -> str:
    """Return a value in words; a technical name has none but itself."""
    return find(language, f"ui.value.{value}", None) or str(value)


def _text(text: str) -> str:
    """Return a text that holds no markup."""
    return text.translate(MARKUP)


def said(language: str, problem: Problem) -> str:
    """Return a problem in the reader's language."""
    return message(language, problem.code, problem.params)


def plain(setting: Setting, value: Any) -> Any:
    """Return the value of a component as the settings take it: whole numbers as int, no value as an empty text."""
    if isinstance(value, float) and setting.info.annotation is int and value.is_integer():
        return int(value)
    if value is None and (setting.pick or setting.info.annotation is str):
        return ""
    if value is None and get_origin(setting.info.annotation) is list:
        return []
    return value.strip() if isinstance(value, str) else value


def brief(language: str, setting: Setting, value: Any) -> str:
    """Return a value as a few words for the head of a card; "" where it says nothing."""
    if setting.union:
        return tr(language, f"choice.{setting.path}.{value}.label") if isinstance(value, str) else ""
    if isinstance(value, list):
        return ", ".join(map(str, value[:3])) + ("…" if len(value) > 3 else "")
    if isinstance(value, bool) or value in (None, "", 0):
        return ""
    if get_origin(setting.info.annotation) is Literal:
        return _word(language, value)
    if isinstance(value, int | float):
        return f"{tr(language, f'field.{setting.path}.label')} {number(language, value)}"
    return str(value).rstrip("/").rpartition("/")[2] if setting.pick in ("model",) else str(value)
