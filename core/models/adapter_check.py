"""What an adapter_config.json may say: others wrote it, and peft takes it at its word. Cold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import InputError

MAX_PATTERN, MAX_REPEATS = 1000, 4
"""Of a regular expression: its length, and how often it repeats: peft asks it for each module, about 1 ms with 4."""
REPEATED_GROUP = re.compile(r"\)[*+{]")
"""A group that repeats can take a name apart in exponentially many ways."""
ENDLESS = re.compile(r"(?:[*+}]|(?<!\()\?)[?+]?")
NUMBERS, SHARES = ("lora_alpha", "d_initial"), ("lora_dropout", "module_dropout", "vera_dropout")
LARGEST = 1e6
NEVER = ("layer_replication", "megatron_config", "alora_invocation_tokens", "use_bdlora", "use_qalora", "arrow_config")
"""Copies layers of the base at will; imports a package that it names; kinds of LoRA that are not plain products."""


def check_config(config: Mapping[str, Any], most: int, folder: str, place: str) -> None:
    """Raise InputError, blaming `place`, for a setting that would run code, run for ever or can't be right.

    most: the largest rank that the stored weights can have.
    """
    wrong = next((key for key in config if not _fine(key, config[key], most)), None)
    if wrong:
        given = str(config[wrong])[:80]
        raise InputError("adapter.bad_config", place, folder=folder, field=wrong, given=given)


def check_whole(folder: Path, place: str) -> None:
    """Raise InputError for a checkpoint of a run whose adapter fits its base only once it is rewritten, at the end."""
    run = folder.resolve().parent.parent
    if (folder / "trainer_state.json").is_file() and any((run / kept).is_dir() for kept in ("beginning", "parts")):
        raise InputError("adapter.checkpoint", place, folder=str(folder), run=run.name)


def _fine(key: str, value: Any, most: int) -> bool:
    if value is None or key not in _RULES:
        return True
    return _RULES[key](value, most)


def _modules(value: Any, _: int) -> bool:
    """A list of names, or one regular expression."""
    return _pattern(value) if isinstance(value, str) else _names(value, _)


def _names(value: Any, _: int) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _pattern(text: str) -> bool:
    """Return whether a regular expression is sound and matches in a time that can be waited for."""
    if len(text) > MAX_PATTERN or REPEATED_GROUP.search(text) or len(ENDLESS.findall(text)) > MAX_REPEATS:
        return False
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _number(value: Any, _: int) -> bool:
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _share(value: Any, _: int) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


def _numbers(value: Any, _: int) -> bool:
    """Numbers by pattern of the names that they hold for."""
    return isinstance(value, dict) and all(_pattern(name) and _number(number, _) for name, number in value.items())


def _ranks(value: Any, most: int) -> bool:
    return _numbers(value, most) and all(isinstance(rank, int) and 1 <= rank <= most for rank in value.values())


def _tokens(value: Any, _: int) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(ids, list) and all(isinstance(i, int) and i >= 0 for i in ids) for ids in lists)


_RULES = {
    "target_modules": _modules,
    "exclude_modules": _modules,
    "feedforward_modules": _modules,
    "layers_pattern": _modules,
    "modules_to_save": _names,
    "target_parameters": _names,
    "rank_pattern": _ranks,
    "alpha_pattern": _numbers,
    "trainable_token_indices": _tokens,
    "bias": lambda value, _: value in ("none", "all", "lora_only"),
    **dict.fromkeys(NUMBERS, _number),
    **dict.fromkeys(SHARES, _share),
    **dict.fromkeys(NEVER, lambda value, _: not value),
}
