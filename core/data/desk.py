"""`python -m core.data.desk`: one question about data on stdin, one answer on stdout, both JSON; progress on stderr.

A process of its own, so that the board never loads what reading data needs, and can end it at any moment.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data import media
from core.data.describe import Described, find
from core.data.files import files
from core.data.inspect import PLACE, entry, inspect, page, said
from core.data.rows import Broken, numbered, opening
from core.errors import InputError
from core.formats import ROWS, Line, Row
from core.imports import quickly
from core.schema import Spec, knob
from core.sections import Data, Model
from core.workspace import locate

if TYPE_CHECKING:
    from core.data.batch import Loader
    from core.data.encode import Encoder

IN_FILE = (1 << ROWS) - 1
"""The bits of a place (Line.row) that are the number in its file."""
BINS = 40
"""Of a histogram of lengths."""


class Question(Spec):
    """What is asked about a set."""

    ask: str
    workspace: str
    data: Data
    """The set is data.train[0], those to look for leaks in are data.eval."""
    model: Model = knob(Model())
    after: int = knob(0, ge=0)
    """Line behind which to begin."""
    nth: int = knob(1, ge=1, le=1 << 40)
    """Number of the row to begin with, of those behind that line."""
    count: int = knob(20, ge=1, le=1000)
    query: str = knob("", max_length=1000)
    encoding: str = ""
    """Of a text file that no description tells of."""
    train_on_prompt: bool = False
    mask_history: bool = False


class Desk:
    """Answers one question."""

    def __init__(self, question: Question, advance: Callable[[int], None]) -> None:
        self.question, self.advance = question, advance
        self.workspace = Path(question.workspace)
        self.folder = locate(question.data.folder, self.workspace, "data.folder")
        self.described = find(self.folder, question.data.train[0], PLACE)
        if question.encoding:
            self.described = replace(self.described, encoding=question.encoding)

    def page(self) -> dict[str, Any]:
        """Some rows as they are in the file, and what the format of the set seems to be."""
        asked = self.question
        try:
            described = entry(self.described.file, opening(self.described, self.folder, PLACE)[0])
        except InputError as error:
            if error.code != "data.no_format":
                raise
            described = {"problem": {"code": error.code, "params": error.params}}
        found = asdict(page(self.described, self.folder, asked.after, asked.count, asked.query))
        for row in found["rows"]:
            row["line"] &= IN_FILE
        return {**found, "several": len(self.files) > 1, "entry": described}

    def inspect(self) -> dict[str, Any]:
        """The whole set: format, columns, how many rows, every broken one."""
        return asdict(inspect(self.described, self.folder, self.advance))

    def report(self) -> dict[str, Any]:
        """Repeats, leaks, empties, private data; and the complexity card."""
        from core.data.card import Card
        from core.data.report import report

        broken, card = Broken(), Card()
        held = [find(self.folder, name, "data.eval") for name in self.question.data.eval]

        def passing() -> Iterator[tuple[int, Row]]:
            for line, row in self._rows(self.described, broken):
                card.add(row)
                yield line.row, row

        told = ((line.row, row) for described in held for line, row in self._rows(described, Broken()))
        found = report(passing(), told, self.advance)
        findings = [
            {**asdict(finding), **self._places(finding.lines), "others": [at & IN_FILE for at in finding.others]}
            for finding in found["findings"]
        ]
        return {**found, "findings": findings, "broken": broken.count, "card": card.told()}

    @cached_property
    def files(self) -> list[str]:
        """The names of the files of the set; none where it lies elsewhere."""
        elsewhere = self.described.url or self.described.hub
        return [] if elsewhere else [path.name for path in files(self.described, self.folder, PLACE)]

    def _places(self, places: list[int]) -> dict[str, Any]:
        """Return {"lines": their numbers in their files, "places": to go to, "files": names, if there are several}."""
        names = [self.files[place >> ROWS] for place in places] if len(self.files) > 1 else []
        return {"lines": [place & IN_FILE for place in places], "places": places, "files": names}

    def render(self) -> dict[str, Any]:
        """Some rows as the model gets them: texts, tokens, masks."""
        from core.data.show import show

        encoder, asked = self._encoder(), self.question
        names, rows = opening(self.described, self.folder, PLACE, asked.after)
        chosen = list(islice(rows, asked.nth - 1, asked.nth + asked.count))  # one more, to know whether there is any
        if not chosen:
            raise InputError("data.no_row", PLACE, name=self.described.name, line=(asked.after & IN_FILE) + asked.nth)
        made: list[dict[str, Any]] = []
        for line, raw in chosen[: asked.count]:
            told: dict[str, Any] = {"line": line.row & IN_FILE, "file": line.file}
            try:
                if isinstance(raw, InputError):
                    raise raw
                row = names.row(raw, line)
                if encoder.album:
                    media.check(row, self.folder, line, whole=True)
                answers = [[asdict(piece) for piece in show(row, encoder, at)] for at in range(len(row.response))]
                made.append({**told, "kind": row.kind, "answers": answers})
            except InputError as error:
                made.append({**told, "error": said(error)})
        ahead = chosen[asked.count - 1][0].row if len(chosen) > asked.count else None
        return {"rows": made, "next": ahead, "escaped": encoder.renderer.escaped}

    def lengths(self) -> dict[str, Any]:
        """How long the rows are in tokens, against the cutoff; and how full packs of them would be."""
        from core.data.pack import bins

        encoder = self._encoder()
        rows = self._readable(self._rows(self.described, Broken()), encoder)
        cutoff, encoder.cutoff = encoder.cutoff, 1 << 30
        lengths_B = encoder.encode(rows, self.advance).lengths_B
        if not len(lengths_B):
            raise InputError("data.no_target", PLACE, cutoff=cutoff)
        counts, edges = np.histogram(lengths_B, BINS)
        cut_B, plain = np.minimum(lengths_B, cutoff), encoder.counts.all_plain
        if plain:  # these are not cut but make several rows
            whole_B, rest_B = np.divmod(lengths_B, cutoff)
            cut_B = np.concatenate([np.full(whole_B.sum(), cutoff), rest_B[rest_B > 1]])
        packs = bins(cut_B, cutoff)
        return {
            "counts": counts.tolist(), "edges": edges.tolist(), "rows": len(lengths_B), "cutoff": cutoff,
            "cut": 0 if plain else int((lengths_B > cutoff).sum()), "tokens": int(cut_B.sum()),
            "mean": float(lengths_B.mean()),
            "p95": float(np.percentile(lengths_B, 95)), "longest": int(lengths_B.max()), "packs": len(packs),
            "fill": float(cut_B.sum() / (len(packs) * cutoff)), "dropped": encoder.counts.dropped,
        }  # fmt: skip

    def packs(self) -> dict[str, Any]:
        """One of the lines of tokens that a run with packing learns from: rows of the set, end to end."""
        from core.data.pack import bins
        from core.data.show import special

        asked, loader = self.question, self._loader()
        encoded, _, _ = loader.load(self.described, PLACE)
        packs = bins(encoded.lengths_B, asked.data.cutoff)
        controls, rows = special(loader.tokenizer), []
        for row in packs[min(asked.nth, len(packs)) - 1]:
            begin, end = encoded.starts_B1[row : row + 2]
            ids = encoded.ids_N[begin:end].tolist()
            rows.append({
                "ids": ids, "tokens": loader.tokenizer.batch_decode([[token] for token in ids]),
                "learned": encoded.learned_N[begin:end].tolist(), "special": [token in controls for token in ids],
            })  # fmt: skip
        return {"rows": rows, "pack": min(asked.nth, len(packs)), "packs": len(packs), "cutoff": asked.data.cutoff}

    def _rows(self, described: Described, broken: Broken, after: int = 0) -> Iterator[tuple[Line, Row]]:
        limit = self.question.data.max_rows or None
        return ((line, row) for line, row, _ in islice(numbered(described, self.folder, PLACE, broken, after), limit))

    def _readable(self, rows: Iterator[tuple[Line, Row]], encoder: Encoder) -> Iterator[Row]:
        """Yield rows without those whose files can't be read."""
        for line, row in rows:
            if row.media and encoder.album:
                try:
                    media.check(row, self.folder, line, whole=True)
                except InputError:
                    continue
            yield row

    def _encoder(self) -> Encoder:
        return self._loader().encoder()

    def _loader(self) -> Loader:
        with quickly():
            from core.data.batch import Loader
            from core.models.loading import load_tokenizer, model_folder
            from core.models.senses import Senses

        asked = self.question
        tokenizer = load_tokenizer(asked.model, self.workspace, template=asked.data.template)
        data = asked.data.model_copy(update={"skip_broken": True})
        senses = Senses(model_folder(asked.model, self.workspace))
        return Loader(data, self.workspace, tokenizer, asked.train_on_prompt, asked.mask_history, self.advance, senses)


ASKS: dict[str, Callable[[Desk], dict[str, Any]]] = {
    "page": Desk.page, "inspect": Desk.inspect, "report": Desk.report, "render": Desk.render, "lengths": Desk.lengths,
    "packs": Desk.packs,
}  # fmt: skip


def main() -> None:
    """Answer the question on stdin."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between

    def advance(done: int) -> None:
        print(done, file=sys.stderr, flush=True)

    question = Question.model_validate_json(sys.stdin.read())
    try:
        answer = {"answer": ASKS[question.ask](Desk(question, advance))}
    except InputError as error:
        answer = {"problem": {**said(error), "place": error.place}}
    # half characters, which a broken row may have, can't be written
    answers.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
    answers.close()


if __name__ == "__main__":
    main()
