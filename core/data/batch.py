"""The sets of a run to what it learns from: read, encoded or taken from the cache, mixed, split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from core.data import cache, kept, mix
from core.data.album import Album
from core.data.describe import Described, find, suffix
from core.data.encode import PAIRED, Counts, Encoded, Encoder, joined
from core.data.files import files
from core.data.render import Renderer
from core.data.rows import LEARNABLE, Broken, examples
from core.data.stream import Stream
from core.data.tokens import Tokenizer
from core.errors import InputError
from core.formats import Row
from core.models.senses import Senses
from core.sections import Data
from core.workspace import locate

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Lessons:
    """What a run learns from."""

    train: Encoded | Stream
    eval: dict[str, Encoded]
    """The evaluation sets by name, "" for rows held out of the training sets; empty when nothing is held out."""
    fingerprint: str
    """sha256 over the files and what the description says of them."""
    read: Counts
    """What became of the rows of all sets that were read beforehand."""
    album: Album | None = None
    """What opens the files of rows that have any."""

    @property
    def seen(self) -> bool:
        """Whether rows may have files."""
        if isinstance(self.train, Stream):
            return self.album is not None
        return any(rows.media_B is not None for rows in (self.train, *self.eval.values()))

    @property
    def held_out(self) -> int:
        """How many rows are held out."""
        return sum(map(len, self.eval.values()))

    @property
    def known(self) -> Sequence[Mapping[str, Any]]:
        """The rows that can be looked at before the model learns: none of a stream."""
        return [] if isinstance(self.train, Stream) else cast(Sequence[Mapping[str, Any]], self.train)

    @property
    def counts(self) -> Counts:
        """What became of the rows up to now: those of a stream are read while the model learns."""
        return self.read + self.train.counts if isinstance(self.train, Stream) else self.read


@dataclass
class Loader:
    """Loads sets for one tokenizer with the settings of one run."""

    data: Data
    workspace: Path
    tokenizer: PreTrainedTokenizerBase
    train_on_prompt: bool = False
    mask_history: bool = False
    advance: Advance = lambda done: None
    senses: Senses | None = None
    wanted: Sequence[str] = LEARNABLE
    """The kinds of rows that are learned from (Row.kind)."""

    @property
    def kind(self) -> str:
        """What is learned from a row (Encoder.kind)."""
        return self.wanted[0] if self.wanted[0] in PAIRED else "answer"

    @cached_property
    def folder(self) -> Path:
        folder = locate(self.data.folder, self.workspace, "data.folder")
        if not folder.is_dir():
            raise InputError("data.not_folder", "data.folder", folder=str(folder))
        return folder

    @cached_property
    def album(self) -> Album | None:
        """What reads rows with files; None for a model of texts."""
        return Album(self.senses, self.folder) if self.senses and self.senses.files else None

    @cached_property
    def tokens(self) -> Tokenizer:
        return Tokenizer(self.tokenizer)

    def load(self, described: Described, place: str) -> tuple[Encoded, Counts, str]:
        """Return (rows of tokens, what became of its rows, fingerprint) of a set."""
        mark = fingerprint(described, self.folder, place)
        settings = self.data.model_dump(include={"cutoff", "truncation", "thinking", "max_rows", "skip_broken"})
        encoder = self.encoder()
        name = cache.key(
            data=mark, settings=settings, options=encoder.renderer.options, mask_history=self.mask_history,
            tokenizer=_sum(self.tokenizer), train_on_prompt=self.train_on_prompt,
            senses=self.album.senses.mark if self.album else None, wanted=self.wanted,
        )  # fmt: skip
        home = kept.folder(self.workspace)
        found = cache.read(home, name) if mark else None
        if found and found[0].media_B is not None and not (self.album and self.album.holds(found[0].media_B)):
            found = None
        if found is None:
            before = stamps(described, self.folder, place)
            found = self._encode(described, place, encoder)
            if stamps(described, self.folder, place) != before:
                raise InputError("data.moving", place, name=described.name)
            if mark:
                cache.write(home, name, *found)
        encoded, counts = found
        if not len(encoded):
            code = "data.all_broken" if counts.broken and not counts.rows else "data.no_target"
            raise InputError(code, place, cutoff=self.data.cutoff, name=described.name, count=counts.broken)
        return encoded, counts, _with_files(mark or hashlib.sha256(encoded.ids_N.tobytes()).hexdigest(), encoded)

    def stream(self, sets: list[Described], seed: int) -> Stream:
        """Return the rows of sets as a stream; the first row of each is looked at now."""
        broken = Broken() if self.data.skip_broken else None

        def reader(described: Described) -> Callable[[], Iterator[Row]]:
            return lambda: self._rows(described, "data.train", broken)

        plain = [self._first(described).plain for described in sets]
        if self.kind == "feedback":
            self._see_both(sets)
        wanted = self.data.packing == "always" or (self.data.packing == "auto" and all(plain))
        packing = wanted and self.kind not in PAIRED
        return Stream([reader(d) for d in sets], self.encoder(), self.data, seed, pack=packing, broken=broken)

    def _first(self, described: Described) -> Row:
        """Return the first row of a set that is in order."""
        broken = Broken() if self.data.skip_broken else None
        for row in self._rows(described, "data.train", broken):
            return row
        raise InputError("data.all_broken", "data.train", name=described.name, count=broken.count if broken else 0)

    def _see_both(self, sets: list[Described]) -> None:
        """Read until there was an answer that was liked and one that was not; raise InputError where one is missing."""
        broken = Broken() if self.data.skip_broken else None
        liked = (bool(row.label) for described in sets for row in self._rows(described, "data.train", broken))
        first = next(liked)
        if all(other == first for other in liked):
            raise InputError("data.one_feedback", "data.train")

    def encoder(self) -> Encoder:
        """Return what turns rows into tokens with these settings, nothing counted yet."""
        data = self.data
        renderer = Renderer(
            self.tokenizer,
            thinking=data.thinking,
            mask_history=self.mask_history or self.kind in PAIRED,
            placeholders=self.album.senses.tokens if self.album else dict,
        )
        return Encoder(
            renderer, self.tokens, data.cutoff, data.truncation, self.train_on_prompt, self.album, self.kind
        )  # fmt: skip

    def _rows(self, described: Described, place: str, broken: Broken | None) -> Iterator[Row]:
        return examples(
            described, self.folder, place, wanted=self.wanted, broken=broken,
            takes=lambda: self.album.senses.kinds if self.album else (),
        )  # fmt: skip

    def _encode(self, described: Described, place: str, encoder: Encoder) -> tuple[Encoded, Counts]:
        data = self.data
        broken = Broken() if data.skip_broken else None
        rows = self._rows(described, place, broken)
        encoded = encoder.encode(islice(rows, data.max_rows or None), self.advance)
        encoder.counts.broken = broken.count if broken else 0
        encoder.counts.repeated = encoded.examples(self.kind).repeated
        return encoded, encoder.counts


def load(
    data: Data,
    workspace: Path,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    wanted: Sequence[str] = LEARNABLE,
    senses: Senses | None = None,
    train_on_prompt: bool = False,
    mask_history: bool = False,
    advance: Advance = lambda done: None,
) -> Lessons:
    """Read, check, encode and mix the sets that `data` names; hold out a share when no evaluation set is named."""
    loader = Loader(data, workspace, tokenizer, train_on_prompt, mask_history, advance, senses, wanted)
    chosen = [find(loader.folder, name, f"data.train.{i}") for i, name in enumerate(data.train)]
    held = {name: find(loader.folder, name, f"data.eval.{i}") for i, name in enumerate(data.eval)}
    if data.streaming:
        return _streamed(loader, chosen, held, seed)
    loaded = [loader.load(described, "data.train") for described in chosen]
    loaded_held = [loader.load(described, "data.eval") for described in held.values()]
    counts = sum((counts for _, counts, _ in loaded + loaded_held), Counts())
    total = hashlib.sha256(json.dumps([mark for _, _, mark in loaded + loaded_held]).encode()).hexdigest()
    parts = [encoded for encoded, _, _ in loaded]
    evaluation = {name: encoded for name, (encoded, _, _) in zip(held, loaded_held, strict=True)}
    if not held:  # from each set before they are mixed, so that no repeated row is on both sides
        parts, held_out = map(list, zip(*(split(part, data.eval_share, seed) for part in parts), strict=True))
        evaluation = {"": rows} if len(rows := joined(held_out)) else {}
    train = joined(parts)
    if data.mix != "concat":
        size = 2 if loader.kind in PAIRED else 1
        order = mix.order([len(part) // size for part in parts], data.mix, data.shares, seed)
        train = train.select((np.asarray(order)[:, None] * size + np.arange(size)).ravel())
    return Lessons(train, evaluation, total, counts, loader.album)


def _streamed(loader: Loader, chosen: list[Described], held: dict[str, Described], seed: int) -> Lessons:
    """Return lessons whose training rows are a stream. Its files are known by size and time: to sum them takes long."""
    parts = [loader.load(described, "data.eval") for described in held.values()]
    marks = [stamps(described, loader.folder, "data.train") for described in chosen]
    total = hashlib.sha256(json.dumps([marks, [mark for _, _, mark in parts]]).encode()).hexdigest()
    counts = sum((counts for _, counts, _ in parts), Counts())
    evaluation = {name: encoded for name, (encoded, _, _) in zip(held, parts, strict=True)}
    return Lessons(loader.stream(chosen, seed), evaluation, total, counts, loader.album)


def split(rows: Encoded, share: float, seed: int) -> tuple[Encoded, Encoded]:
    """Return (training rows, held-out rows); the same seed holds out the same rows. At least one row stays to learn.

    What was made of one row stays together.
    """
    sources = np.unique(rows.source_B)
    count = min(max(round(len(sources) * share), share > 0), len(sources) - 1)
    held = np.isin(rows.source_B, np.random.default_rng(seed).permutation(sources)[:count])
    return rows.select(np.flatnonzero(~held)), rows.select(np.flatnonzero(held))


def stamps(described: Described, folder: Path, place: str) -> list[tuple[str, int, int]]:
    """Return name, size and time of the files of a set; nothing where it lies elsewhere."""
    if described.hub or described.url:
        return []
    found = [(path, path.stat()) for path in files(described, folder, place)]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]


def fingerprint(described: Described, folder: Path, place: str) -> str:
    """Return the sha256 over the files of a set and what its description says; "" where it lies elsewhere."""
    if described.hub or described.url:
        return ""
    total = hashlib.sha256()
    for path in files(described, folder, place):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
        total.update(suffix(path.name).encode())  # the same bytes may be read in another way
    names = described.names.model_dump() if described.names else {}
    total.update(json.dumps([described.name, described.rows, described.encoding, names], sort_keys=True).encode())
    return total.hexdigest()


def _with_files(mark: str, encoded: Encoded) -> str:
    """Return the fingerprint of a set with that of the files of its rows."""
    if encoded.media_B is None:
        return mark
    return hashlib.sha256("\n".join([mark, *encoded.media_B]).encode()).hexdigest()


def _sum(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer, without what it was last asked to pad or cut."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
