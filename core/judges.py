"""Whether the folder of a reward model holds what can judge answers of a run, by its files alone. Cold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    head_file(folder, place)
