"""`python -m core.data.desk`: one question about data on stdin, one answer on stdout, both JSON; progress on stderr.

A process of its own, so that the board never loads what reading data needs, and can end it at any moment.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data.describe import Described, find
from core.data.inspect import PLACE, entry, inspect, page, said
from core.data.rows import Broken, numbered, opening
from core.errors import InputError
from core.formats import Line, Row
from core.schema import Spec, knob
from core.sections import Data, Model
from core.workspace import locate

if TYPE_CHECKING:
    from core.data.batch import Loader
    from core.data.encode import Encoder

BINS = 40
"""Of a histogram of lengths."""


class Question(Spec):
    """What is asked about a set."""

    ask: str
    workspace: str
    data: Data
    """The set is data.train[0], the one to look for leaks in data.eval."""
    model: Model = knob(Model())
    after: int = knob(0, ge=0)
    """Line behind which to begin."""
    nth: int = knob(1, ge=1)
    """Number of the row to begin with, of those behind that line."""
    count: int = knob(20, ge=1, le=1000)
    query: str = knob("", max_length=1000)
    train_on_prompt: bool = False
    mask_history: bool = False


class Desk:
    """Answers one question."""

    def __init__(self, question: Question, advance: Callable[[int], None]) -> None:
        self.question, self.advance = question, advance
        self.workspace = Path(question.workspace)
        self.folder = locate(question.data.folder, self.workspace, "data.folder")
        self.described = find(self.folder, question.data.train[0], PLACE)

    def page(self) -> dict[str, Any]:
        """Some rows as they are in the file, and what the format of the set seems to be."""
        asked = self.question
        names, _ = opening(self.described, self.folder, PLACE)
        found = page(self.described, self.folder, asked.after, asked.count, asked.query)
        return {**asdict(found), "entry": entry(self.described.file, names)}

    def inspect(self) -> dict[str, Any]:
        """The whole set: format, columns, how many rows, every broken one."""
        return asdict(inspect(self.described, self.folder, self.advance))

    def report(self) -> dict[str, Any]:
        """Repeats, leaks, empties, private data; and the complexity card."""
        from core.data.card import card
        from core.data.report import report

        broken = Broken()
        rows = list(self._rows(self.described, broken))
        held = []
        if self.question.data.eval:
            held = list(self._rows(find(self.folder, self.question.data.eval, "data.eval"), Broken()))
        found = report(((line.row, row) for line, row in rows), ((line.row, row) for line, row in held),
                       self.advance)  # fmt: skip
        findings = [asdict(finding) for finding in found["findings"]]
        return {**found, "findings": findings, "broken": broken.count, "card": card(row for _, row in rows)}

    def render(self) -> dict[str, Any]:
        """Some rows as the model gets them: texts, tokens, masks."""
        from core.data.show import show

        encoder = self._encoder()
        made = []
        asked, rows = self.question, self._rows(self.described, Broken(), self.question.after)
        for line, row in islice(rows, asked.nth - 1, asked.nth - 1 + asked.count):
            answers = [[asdict(piece) for piece in show(row, encoder, at)] for at in range(len(row.response))]
            made.append({"line": line.row, "kind": row.kind, "answers": answers})
        if not made:
            raise InputError("data.no_row", PLACE, name=self.described.name, line=self.question.after + 1)
        return {"rows": made, "escaped": encoder.renderer.escaped}

    def lengths(self) -> dict[str, Any]:
        """How long the rows are in tokens, against the cutoff; and how full packs of them would be."""
        from core.data.pack import bins

        encoder, rows = self._encoder(), self._rows(self.described, Broken())
        cutoff, encoder.cutoff = encoder.cutoff, 1 << 30
        lengths_B = encoder.encode((row for _, row in rows), self.advance).lengths_B
        if not len(lengths_B):
            raise InputError("data.no_target", PLACE, cutoff=cutoff)
        counts, edges = np.histogram(lengths_B, BINS)
        cut_B = np.minimum(lengths_B, cutoff)
        packs = bins(cut_B, cutoff)
        return {
            "counts": counts.tolist(), "edges": edges.tolist(), "rows": len(lengths_B), "cutoff": cutoff,
            "cut": int((lengths_B > cutoff).sum()), "tokens": int(cut_B.sum()), "mean": float(lengths_B.mean()),
            "p95": float(np.percentile(lengths_B, 95)), "longest": int(lengths_B.max()), "packs": len(packs),
            "fill": float(cut_B.sum() / (len(packs) * cutoff)),
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

    def _encoder(self) -> Encoder:
        return self._loader().encoder()

    def _loader(self) -> Loader:
        from core.data.batch import Loader
        from core.models.loading import load_tokenizer

        asked = self.question
        tokenizer = load_tokenizer(asked.model, self.workspace, template=asked.data.template)
        data = asked.data.model_copy(update={"skip_broken": True})
        return Loader(data, self.workspace, tokenizer, asked.train_on_prompt, asked.mask_history, self.advance)


ASKS: dict[str, Callable[[Desk], dict[str, Any]]] = {
    "page": Desk.page, "inspect": Desk.inspect, "report": Desk.report, "render": Desk.render, "lengths": Desk.lengths,
    "packs": Desk.packs,
}  # fmt: skip


def main() -> None:
    """Answer the question on stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between

    def advance(done: int) -> None:
        print(done, file=sys.stderr, flush=True)

    question = Question.model_validate_json(sys.stdin.read())
    try:
        answer = {"answer": ASKS[question.ask](Desk(question, advance))}
    except InputError as error:
        answer = {"problem": {**said(error), "place": error.place}}
    json.dump(answer, answers, ensure_ascii=False)
    answers.close()


if __name__ == "__main__":
    main()
