"""What a model sees and hears with: its processor, which turns files and a text with placeholders into inputs.

Whatever a processor returns is handed to the model under the same name, so that each architecture gets what it wants.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, ProcessorMixin

from core.errors import InputError
from core.models import foreign
from core.models.inspect import PROCESSORS
from core.models.jsons import read_json

PARTS = {"image_processor": "images", "video_processor": "videos", "feature_extractor": "audios",
         "audio_processor": "audios"}  # fmt: skip
"""Parts of a processor, and the kind of files that each reads."""
FIRST_TOKENS = {"images": "image_token", "videos": "video_token", "audios": "audio_token"}
"""Names under which a processor holds its placeholders."""
UNUSABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, OSError)
"""What processors raise for files or texts that they can't make sense of."""
TYPES = {"molmo2": "mm_token_type_ids"}
"""Types of models that ask in training which tokens are files, and under which name: processors alone tell it."""
OWN = ("input_ids", "attention_mask", "offset_mapping", "text_replacement_offsets")


@dataclass(frozen=True)
class View:
    """A rendered text with a placeholder for each file, and the opened files: kind -> as the processor takes them."""

    text: str
    files: dict[str, list[Any]]


def on(model: PreTrainedModel, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors on the device of the model, what is no whole number in its number format."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in given.items()
    }


@dataclass(frozen=True)
class Read:
    """A view as tokens."""

    text: str
    """The text with expanded placeholders."""
    ids_T: np.ndarray
    begin_T: np.ndarray
    """First character of each token in that text."""
    end_T: np.ndarray
    grown: list[tuple[int, int, int]]
    """Of each placeholder: its end in the text as it was, where it begins and ends in the expanded one."""


class Senses:
    """The processor of a model folder, loaded when it is needed first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> list[Path]:
        """The files of the processor; none for a model of texts."""
        return [self.folder / name for name in PROCESSORS if (self.folder / name).is_file()]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of files that the model takes: of images, videos, audios; none for a model of texts."""
        if not self.files:
            return ()
        return tuple(dict.fromkeys(PARTS[part] for part in self.processor.get_attributes() if part in PARTS))

    @cached_property
    def mark(self) -> str:
        """The sha256 over the files of the processor: what it makes of an image follows from them."""
        return hashlib.sha256(b"".join(path.read_bytes() for path in self.files)).hexdigest()

    def tokens(self) -> dict[str, str]:
        """Return kind -> placeholder token."""
        held = vars(self.processor) if self.files else {}
        return {kind: held[name] for kind, name in FIRST_TOKENS.items() if isinstance(held.get(name), str)}

    @cached_property
    def ids(self) -> list[int]:
        """The ids of the placeholder tokens."""
        return [self.processor.tokenizer.convert_tokens_to_ids(token) for token in self.tokens().values()]

    @property
    def rate(self) -> int:
        """Samples a second of the sounds that the processor takes."""
        return int(self.processor._audio_processor.sampling_rate)

    @cached_property
    def processor(self) -> Any:
        """Raises InputError at model.path: for a broken one, or one that needs a package that is not here."""
        folder = str(self.folder)
        foreign.bring(self.folder)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            made: Any = AutoProcessor.from_pretrained(
                folder, config=config, trust_remote_code=False, local_files_only=True
            )
        except ImportError as error:
            raise InputError("processor.package", "model.path", folder=folder, what=_said(error)) from None
        except UNUSABLE as error:
            raise InputError("processor.unusable", "model.path", folder=folder, what=_said(error)) from None
        if not isinstance(made, ProcessorMixin):
            raise InputError("processor.unusable", "model.path", folder=folder, what=type(made).__name__)
        if made.tokenizer.pad_token is None:
            made.tokenizer.pad_token = made.tokenizer.eos_token
        return made

    def read(self, view: View) -> Read:
        """Return the tokens of a view: the ids that the processor itself makes of it."""
        made = self._process([view], return_offsets_mapping=True, return_text_replacement_offsets=True)
        spans = made.get("text_replacement_offsets")
        grown, text, done = [], "", 0
        for r in spans[0] if spans else ():
            (begin, end), (_, new_end) = r["span"], r["new_span"]
            text += view.text[done:begin] + r["replacement"]
            done = end
            grown.append((end, len(text) - len(r["replacement"]), new_end))
        ids_T = np.array(made["input_ids"][0], np.int32)
        if not spans and ids_T.tolist() != self.processor.tokenizer(view.text, **self._specials(view))["input_ids"]:
            raise InputError("processor.layout", "model.path", processor=type(self.processor).__name__)
        begin_end = np.array(made["offset_mapping"][0], np.int32).reshape(-1, 2)
        # special tokens around a text stand at no character
        text += view.text[done:]
        return Read(text, ids_T, begin_end[:, 0], np.maximum.accumulate(begin_end[:, 1]), grown)

    def check(self, kinds: Iterable[str], place: str) -> None:
        """Raise InputError at `place` when the model does not take files of these kinds."""
        if foreign := [kind for kind in kinds if kind not in self.kinds]:
            raise InputError("media.not_taken", place, kinds=", ".join(foreign))

    def beside(self, views: Sequence[View | None], starts: Sequence[int], width: int) -> dict[str, torch.Tensor]:
        """Return what a batch needs beside its tokens; nothing for one of texts alone.

        views: of each row; starts: where its tokens begin in the batch, which is `width` tokens wide. What the
        processor says of each token is laid to its token, zeros everywhere else.
        """
        rows = [row for row, view in enumerate(views) if view]
        if not rows:
            return {}
        given = [view for view in views if view]
        made = self._process(given, padding=True, padding_side="right", return_tensors="pt")
        if "cross_attention_mask" in made and len(given) < len(views):
            raise InputError("processor.mixed", "model.path", processor=type(self.processor).__name__)
        lengths = made["attention_mask"].sum(1).tolist()
        shape = made["input_ids"].shape
        found: dict[str, torch.Tensor] = {}
        for name, value in made.items():
            if name in OWN:
                continue
            if value.shape[:2] == shape:
                told = value
                value = torch.zeros(len(views), width, *told.shape[2:], dtype=told.dtype)
                for at, row in enumerate(rows):
                    value[row, starts[row] : starts[row] + lengths[at]] = told[at, : lengths[at]]
            found[name] = value
        return found

    def _process(self, views: list[View], **options: Any) -> Any:
        """Call the processor."""
        files = {kind: [view.files.get(kind, []) for view in views] for kind in self.kinds}
        given: dict[str, Any] = {
            "images": files.get("images"),
            "videos": files.get("videos"),
            "audio": [sound for own in files.get("audios", []) for sound in own],  # no processor takes lists of lists
        }
        given = {name: value for name, value in given.items() if value and any(map(len, value))}
        try:
            return self.processor(text=[view.text for view in views], **given, **self._specials(views[0]), **options)
        except UNUSABLE as error:
            raise InputError("processor.refuses", "model.path", what=_said(error)) from None

    def _specials(self, view: View) -> dict[str, bool]:
        """Begin a text with the token of beginnings once: the template may have written it (as apply_chat_template)."""
        begin = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if begin and view.text.startswith(begin) else {}


def take_texts(model: PreTrainedModel) -> None:
    """Tell a model that asks for it that no token of a batch of texts is a file."""
    if model.config.model_type in TYPES:
        model.register_forward_pre_hook(_no_files, with_kwargs=True)


def _no_files(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    name, ids_B_T = TYPES[model.config.model_type], kwargs.get("input_ids")
    if not model.training or ids_B_T is None:
        return args, kwargs
    return args, {name: torch.zeros_like(ids_B_T)} | kwargs


def template(folder: Path) -> str | None:
    """Return the chat template that only the processor of a folder has: where models of 2024 keep it."""
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name, "model.path", "model.no_config").get("chat_template")
            if isinstance(found, str):
                return found
    return None


def keep(source: Path, folder: Path) -> None:
    """Copy the files of a processor, as they are, beside a model that was saved."""
    for name in PROCESSORS:
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


def _said(error: BaseException) -> str:
    """Return what an error says, short enough for a message."""
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
