"""What drawn answers are worth: by rule, or by a reward model that may share the base with the model that learns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core import judges
from core.config import Run
from core.errors import InputError
from core.models import value_head
from core.models.jsons import read_json
from core.models.value_head import ValueHead
from core.patterns import compiled
from core.rewards import Reward
from core.training.objective import Batch
from core.workspace import Context, tuned

ADAPTER, OWN = "reward", "default"
SECONDS = 1.0
"""That a pattern may take on one answer."""


@dataclass(frozen=True)
class Answer:
    """An answer that was drawn."""

    text: str
    wanted: str
    """The answer of its row."""
    tokens: int


def by_rule(reward: Reward) -> Callable[[Answer], float]:
    """Return what tells the worth of an answer, 0 to 1. Raises InputError there for a pattern that takes too long."""
    rules: dict[str, Callable[[Answer], float]] = {
        "exact": lambda answer: float(answer.text.strip() == answer.wanted.strip()),
        "regex": lambda answer: _found(reward.pattern, answer.text),
        "length": lambda answer: max(0.0, 1 - abs(answer.tokens - reward.length) / reward.length),
        "json": lambda answer: _is_json(answer.text),
    }
    return rules[reward.by]


def _found(pattern: str, text: str) -> float:
    try:
        return float(compiled(pattern).search(text, timeout=SECONDS) is not None)
    except TimeoutError:
        raise InputError("reward.slow", "stage", pattern=pattern[:80]) from None


def _is_json(text: str) -> float:
    try:
        json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _no_json(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity, which Python takes


@dataclass(frozen=True)
class Judge:
    """A reward model: its head, read off the model that learns under its own adapter, or off a model of its own."""

    model: Any
    head: ValueHead
    shared: bool

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the number of each row of a batch, as training.reward reads it."""
        from core.training.reward import read

        with _under(self.model, ADAPTER) if self.shared else _evaluated(self.model):
            return read(self.model, self.head, batch)[0]


def judging(
    run: Run, context: Context, model: Any, tokenizer: PreTrainedTokenizerBase, reward: Reward
) -> tuple[Any, Callable[[Answer], float] | Judge]:
    """Return (the model that learns, what judges its answers).

    The adapter of a judge is laid beside the one that learns. Raises InputError at stage.reward.judge for what can't
    judge (judges.check), and one that reads other tokens than `tokenizer` writes.
    """
    if reward.by != "model":
        return model, by_rule(reward)
    from core.models.adapters import load_adapter
    from core.models.inspect import TOKENIZERS
    from core.models.loading import load_model, read_tokenizer

    place = f"stage.{run.stage.kind}.reward.judge"
    folder = tuned(reward.judge, context.workspace, place)
    base = Path(model.name_or_path)
    judges.check(reward.judge, folder, run, base, place)
    if (folder / "config.json").exists():
        own = load_model(run.model.at(str(folder)), context.workspace, run.hardware)
        _check_tokens(tokenizer, read_tokenizer(folder, own.config, place), reward.judge, place)
        return model, Judge(own, value_head.load(own, folder, place), shared=False)
    home = folder if any((folder / name).exists() for name in TOKENIZERS) else base
    _check_tokens(tokenizer, read_tokenizer(home, model.config, place), reward.judge, place)
    _check_tables(model, folder, reward.judge, place)
    head = value_head.load(model, folder, place)
    model = load_adapter(model, folder, ADAPTER, place)
    model.set_adapter(OWN)
    # checkpoints and results hold what learns alone
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=[OWN])
    return model, Judge(model, head, shared=True)


def _check_tokens(writes: PreTrainedTokenizerBase, reads: PreTrainedTokenizerBase, judge: str, place: str) -> None:
    known = reads.get_vocab()
    if token := next((token for token, number in writes.get_vocab().items() if known.get(token) != number), ""):
        raise InputError("reward.tokenizer", place, judge=judge, token=repr(token))


def _check_tables(model: PeftModel, folder: Path, judge: str, place: str) -> None:
    """Refuse a table of tokens of which one adapter has some rows and the other a copy: peft can't lay both over it."""
    own = model.peft_config[OWN].to_dict()
    theirs = read_json(folder / "adapter_config.json", place, "adapter.no_config").get("trainable_token_indices") or ()
    rows = own.get("trainable_token_indices") or ()
    if (rows or own.get("modules_to_save")) and set(rows) != set(theirs):
        raise InputError("reward.tables", place, judge=judge)


@contextmanager
def _under(model: PeftModel, adapter: str) -> Any:
    """Have a model compute with another adapter than the one that learns."""
    with _evaluated(model):
        model.set_adapter(adapter)
        try:
            yield
        finally:
            model.set_adapter(OWN)


@contextmanager
def _evaluated(model: PreTrainedModel | PeftModel) -> Any:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def told(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], wanted: Sequence[int]) -> Answer:
    """Return an answer in words."""
    texts = tokenizer.batch_decode([list(ids), list(wanted)], skip_special_tokens=True)
    return Answer(texts[0], texts[1], len(ids))
