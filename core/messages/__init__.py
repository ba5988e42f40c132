"""English texts of every code that the engine can raise or report; the other languages stand in locales/.

Each error text says what is wrong, where, and what to do. `{name}` is a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.messages.data import DATA
from core.messages.jobs import JOBS
from core.messages.models import MODELS

MESSAGES = JOBS | MODELS | DATA


class _Known(dict[str, Any]):
    """Leaves a hole whose parameter is missing as it stands."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def english(code: str, params: Mapping[str, Any]) -> str:
    """Return the English text of a code; the code itself where it has none."""
    return MESSAGES.get(code, code).format_map(_Known(params))
