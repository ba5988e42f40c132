"""Whether the folder of a reward model holds what can judge answers of a run, by its files alone. Cold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError
from core.models.inspect import head_file, inspect, inspect_adapter
from core.models.jsons import read_json

if TYPE_CHECKING:
    from core.config import Run


def check(judge: str, folder: Path, run: Run, model: Path | None, place: str) -> None:
    """Raise InputError at `place` for what is no reward model, or an adapter that can't share the base of the run.

    judge: as it is named in the settings. model: the folder of the model that learns; None where it is not here yet.
    """
    if (folder / "config.json").exists():
        inspect(folder, place)
    else:
        facts = inspect_adapter(folder, place)
        if facts.peft_type != run.tuner.kind.upper():
            raise InputError("reward.adapter", place, judge=judge, kind=facts.peft_type)
        if not run.tuner.keeps_base():
            raise InputError("reward.changed_base", place, judge=judge)
        if model and facts.base and Path(facts.base).is_dir() and not Path(facts.base).samefile(model):
            raise InputError("reward.base", place, judge=judge, base=facts.base)
        config = read_json(folder / "adapter_config.json", place, "adapter.no_config")
        if run.model.added and not (config.get("trainable_token_indices") or config.get("modules_to_save")):
            raise InputError("reward.tokenizer", place, judge=judge, token=repr(run.model.added[0]))
        if token := _unknown(config, folder, run.model.added, place):
            raise InputError("reward.tokenizer", place, judge=judge, token=token)
    head_file(folder, place)


def _unknown(config: dict[str, Any], folder: Path, added: list[str], place: str) -> str:
    """Return a token that an adapter has learned and the run does not add; "" where no file tells of one."""
    rows = config.get("trainable_token_indices") or []
    ids = [number for part in (rows.values() if isinstance(rows, dict) else [rows]) for number in part]
    file = folder / "tokenizer.json"
    more = read_json(file, place, "adapter.no_config").get("added_tokens") if file.is_file() else None
    tokens = [token for token in more if isinstance(token, dict)] if isinstance(more, list) else []
    if added and not tokens:
        return ""  # the engine asks the tokenizer
    names = {str(token.get("id")): str(token.get("content")) for token in tokens}
    return next((repr(names.get(str(number), number)) for number in ids if names.get(str(number)) not in added), "")
