"""A red note above the fields of a model that brings code of its own: whether it runs, and what to type. No gradio."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from app.i18n import message, tr
from core.errors import InputError
from core.models import consent
from core.models.inspect import foreign_code
from core.workspace import jailed


def note(language: str, path: Any, workspace: Path, allowed: Sequence[Path]) -> str:
    """Return the note as HTML; "" for a model without such code, and where there is none (Start says why)."""
    try:
        folder = jailed(str(path or ""), workspace, tuple(allowed), "model.path")
        if not path or not (code := foreign_code(folder)):
            return ""
        consent.check(code, "model.path")
        text = tr(language, "ui.form.code_runs", files=", ".join(code.files))
    except InputError as error:
        if error.code != "model.remote_code" and not error.code.startswith("code."):
            return ""
        text = message(language, error.code, error.params)
    except OSError:
        return ""
    return f'<div class="tb-error" role="alert"><p>{escape(text)}</p></div>'
