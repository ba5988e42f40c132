"""A base model and the tuned ones that stand beside it: adapters share the weights of the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import InputError
from core.models.loading import load, model_folder
from core.models.senses import Senses
from core.sections import Hardware, Model
from core.workspace import tuned as tuned_folder

if TYPE_CHECKING:
    from peft import PeftModel

    from core.events import Writer

BASE = "base"


@dataclass(frozen=True)
class Subject:
    """One of the line-up."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    senses: Senses
    adapter: str = ""
    """Name under which its adapter is attached to the shared model; empty for a model of its own and for the base."""


class Lineup:
    """The base and every tuned model, by name; one of them answers at a time."""

    def __init__(
        self, model: Model, tuned: Sequence[str], workspace: Path, hardware: Hardware, events: Writer | None = None
    ) -> None:
        """Load everything. tuned: names of runs or folders, each with an adapter or a whole model.

        Raises InputError at model.path or tuned.
        """
        folders = {reference: tuned_folder(reference, workspace, "tuned") for reference in dict.fromkeys(tuned)}
        base, tokenizer = load(model, workspace, hardware, events=events)
        self._peft: PeftModel | None = None
        senses = Senses(model_folder(model, workspace))
        self._subjects = {BASE: Subject(base, tokenizer, senses)}
        for number, (reference, folder) in enumerate(folders.items()):
            if (folder / "config.json").exists():
                whole = _load_beside(model.at(str(folder)), workspace, hardware, events)
                self._subjects[reference] = Subject(*whole, Senses(folder))
            else:
                self._subjects[reference] = Subject(base, tokenizer, senses, f"tuned{number}")
        self._attach({name: folders[name] for name, subject in self._subjects.items() if subject.adapter})

    def _attach(self, folders: dict[str, Path]) -> None:
        """Attach the adapters to the base, which first gets rows for the tokens of each."""
        if not folders:
            return
        from core.models.adapters import has_tokens, load_adapter, tokenizer_of  # peft takes seconds to import

        base = self._subjects[BASE]
        for name, folder in folders.items():
            own = tokenizer_of(folder, base.model, base.tokenizer)
            self._subjects[name] = replace(self._subjects[name], tokenizer=own)
        # peft finds the rows of no other adapter once one has some
        for name in sorted(folders, key=lambda name: has_tokens(folders[name])):
            self._peft = load_adapter(self._peft or base.model, folders[name], self._subjects[name].adapter)

    @property
    def names(self) -> tuple[str, ...]:
        """`base` first, then the references as they were given."""
        return tuple(self._subjects)

    def tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        return self._subjects[name].tokenizer

    def senses(self, name: str) -> Senses:
        return self._subjects[name].senses

    @property
    def sees(self) -> bool:
        """Whether all take images. One whose processor lacks a package doesn't, until somebody shows it an image."""
        try:
            return all("images" in subject.senses.kinds for subject in self._subjects.values())
        except InputError:
            return False

    def model(self, name: str) -> PreTrainedModel:
        """Return the model for questions about its config; to compute with it, use `use`."""
        return self._subjects[name].model

    @contextmanager
    def use(self, name: str) -> Iterator[PreTrainedModel]:
        """Give the model of that name for the length of a with block; blocks must not overlap."""
        subject = self._subjects[name]
        if self._peft is None or subject.model is not self._subjects[BASE].model:
            yield subject.model
        elif subject.adapter:
            self._peft.set_adapter(subject.adapter, inference_mode=True)
            yield subject.model
        else:
            with self._peft.disable_adapter():
                yield subject.model


def _load_beside(
    model: Model, workspace: Path, hardware: Hardware, events: Writer | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a whole tuned model; its faults are faults of `tuned`, not of the base."""
    try:
        return load(model, workspace, hardware, events=events)
    except InputError as error:
        raise InputError("", problems=tuple(replace(problem, place="tuned") for problem in error.problems)) from None
