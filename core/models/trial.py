"""Try a chat template before anything rests on it: it is a program of whoever made the model, and might never end.

It can't do anything else: transformers renders in a sandbox, where ranges are short but may stand within each other.
"""

from __future__ import annotations

import threading
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from core.errors import InputError

SECONDS = 20
"""Usual templates take milliseconds."""
TURNS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
FAILS = (TemplateError, ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, MemoryError,
         RecursionError)  # fmt: skip
"""What a template raises; why is said where rows are rendered."""


def check_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError at data.template for a template that does not come to an end."""
    # a daemon, which ends with the process at the latest
    thread = threading.Thread(target=_render, args=(tokenizer,), daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        raise InputError("model.template_endless", "data.template", seconds=SECONDS)


def _render(tokenizer: Any) -> None:
    for prompt in (False, True):
        try:
            tokenizer.apply_chat_template(TURNS[: 2 - prompt], tokenize=False, add_generation_prompt=prompt)
        except FAILS:
            continue
