"""`tuneboard settings`: every key of a job with its default, its bounds and its help."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

from app import i18n
from app.cli_speak import Answer, language, out, say
from core import config
from core.schema import Setting, variants

SIGNS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def show(job: str, answer: Answer) -> None:
    """Print the reference page of a job."""
    found = config.known_settings(config.JOBS[job])
    answer.fields |= {"job": job, "settings": [_fields(setting) for setting in found]}
    if answer.as_json:
        return
    out(f"{_text(f'job.{job}', 'label')}. {_text(f'job.{job}', 'help')}")
    for setting in found:
        out("\n" + "\n".join(_lines(setting)))


def _fields(setting: Setting) -> dict[str, Any]:
    only = {"only_with": "=".join(setting.variant)} if setting.variant else {}
    texts = {name: _text(f"field.{setting.path}", name) for name in ("label", "help")}
    facts = {"key": setting.key, "default": setting.default, "values": values(setting)}
    return facts | setting.limits | only | texts


def _lines(setting: Setting) -> list[str]:
    """Return the key with its default and bounds, then the label and the help, indented."""
    facts = [json.dumps(setting.default, ensure_ascii=False)]
    facts += [SIGNS[name].format(bound) for name, bound in setting.limits.items() if name in SIGNS]
    if known := values(setting):
        facts.append(" | ".join(map(str, known)))
    if setting.variant:
        facts.append(say("settings.only", choice="=".join(setting.variant)))
    label, help_ = _text(f"field.{setting.path}", "label"), _text(f"field.{setting.path}", "help")
    return [f"{setting.key} = {'   '.join(facts)}", f"    {label}. {help_}".rstrip()]


def values(setting: Setting) -> list[Any]:
    """Return the values of a setting that has a closed set of them, else []."""
    if setting.union:
        return list(variants(setting.union.package))
    annotation = setting.info.annotation
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def _text(key: str, part: str) -> str:
    """Return the label or the help of a declaration, "" where it has none."""
    shown = i18n.tr(language(), f"{key}.{part}")
    return "" if shown == f"{key}.{part}" else shown
