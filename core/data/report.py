"""What may be wrong with rows that are all in order: repeats, leaks, empties, private data, typed control tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rensa import RMinHash, RMinHashLSH  # type: ignore[attr-defined]  # compiled, without stubs

from core.data.card import parts, words
from core.data.inspect import language
from core.formats import Row

PERMUTATIONS, BANDS, ALIKE = 128, 16, 0.8
"""Of MinHash: 16 bands of 8 find pairs that share 0.8 of their shingles with a probability of 0.95."""
COMPARED = 50
"""Rows in the same bands that one is compared with at most: rows by one pattern would all meet."""
SHINGLE = 3
"""Words that make one."""
SIGNED = 200_000
"""Rows among which near repeats are looked for: each takes about 2 KB."""
KEPT = 200
"""Lines that are named for each finding; all are counted."""
CODES = (
    "report.duplicate", "report.near_duplicate", "report.empty_answer", "report.empty_question",
    "report.control_token", "report.email", "report.phone", "report.leak", "report.near_leak",
)  # fmt: skip
TOLD_BY = 2000
"""Rows whose language is told."""
RARE = 0.01
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}")
PHONE = re.compile(
    r"(?<![\w.,-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,3}"
    r"|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\w-])"
)
"""Numbers that begin with +, or are grouped as in North America."""
CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")


@dataclass
class Finding:
    """Something to look at: a code of core.messages, how often, and where."""

    code: str
    count: int = 0
    lines: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    """For repeats: the line of the row that each of `lines` repeats; for leaks that of the evaluation set."""

    def add(self, line: int, other: int = 0) -> None:
        self.count += 1
        if len(self.lines) < KEPT:
            self.lines.append(line)
            if other:
                self.others.append(other)


class _Seen:
    """Rows that were seen, exactly or nearly the same."""

    def __init__(self) -> None:
        self.exact: dict[bytes, int] = {}
        self.near = RMinHashLSH(ALIKE, PERMUTATIONS, BANDS)
        self.hashes: dict[int, RMinHash] = {}

    def same(self, text: str) -> int:
        """Return the line of the first row with this text; 0 for none."""
        return self.exact.get(_digest(text), 0)

    def alike(self, text: str) -> tuple[int, RMinHash]:
        """Return (the line of a row that shares most of its shingles, or 0; the signature of this one)."""
        signature = RMinHash(PERMUTATIONS, 0)
        signature.update(shingles(text))
        for line in self.near.query(signature)[:COMPARED]:
            if self.hashes[line].jaccard(signature) >= ALIKE:
                return line, signature
        return 0, signature

    def add(self, line: int, text: str, signature: RMinHash | None) -> None:
        """Remember a row; without its signature where one that is alike stands for it."""
        self.exact[_digest(text)] = line
        if signature is not None:
            self.near.insert(line, signature)
            self.hashes[line] = signature


def report(
    rows: Iterable[tuple[int, Row]],
    held_out: Iterable[tuple[int, Row]] = (),
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Return {"rows": n, "findings": [Finding], "languages": {code: share}} of numbered rows.

    `held_out`: rows of the evaluation set; those that also stand among the others are leaks.
    """
    seen = _Seen()
    found = {code: Finding(code) for code in CODES}
    languages: Counter[str] = Counter()
    count = 0
    for line, row in rows:
        count += 1
        asked, answered = parts(row)
        _look_at(found, line, row, asked, answered)
        if count <= TOLD_BY:
            languages[language(f"{asked} {answered}") or "?"] += (
                1  # short texts are often told wrong: rare ones fall away
            )
        text = _whole(row)
        if other := seen.same(text):
            found["report.duplicate"].add(line, other)
            continue
        other, signature = seen.alike(text) if count <= SIGNED else (0, None)
        if other:
            found["report.near_duplicate"].add(line, other)
        seen.add(line, text, None if other else signature)
        if count % 512 == 0:
            advance(count)
    for line, row in held_out:
        text = _whole(row)
        if other := seen.same(text):
            found["report.leak"].add(other, line)
        elif other := seen.alike(text)[0]:
            found["report.near_leak"].add(other, line)
    told = languages.total() or 1
    shares = {code: number / told for code, number in languages.most_common(10) if number / told >= RARE}
    return {"rows": count, "findings": [finding for finding in found.values() if finding.count], "languages": shares}


def _look_at(found: dict[str, Finding], line: int, row: Row, asked: str, answered: str) -> None:
    """Note what one row alone shows."""
    if not answered.strip() and not row.response[0].get("tool_calls"):
        found["report.empty_answer"].add(line)
    if not asked.strip() and not row.plain:
        found["report.empty_question"].add(line)
    text = _whole(row)
    for code, pattern in (("report.control_token", CONTROL), ("report.email", EMAIL), ("report.phone", PHONE)):
        if pattern.search(text):
            found[code].add(line)


def _whole(row: Row) -> str:
    """Return all that makes a row what it is, as a text."""
    calls = [message["tool_calls"] for message in [*row.prompt, *row.response] if message.get("tool_calls")]
    more = [part for part in (calls, row.tools, row.media, row.label) if part not in (None, [], {})]
    texts = [row.system, *(str(message["content"]) for message in [*row.prompt, *row.response])]
    return "\n".join([*texts, *(json.dumps(part, ensure_ascii=False, default=str) for part in more)])


def shingles(text: str) -> list[str]:
    """Return the runs of three words in a text; of a short text its words."""
    said = words(text)
    if len(said) < SHINGLE:
        return said or [text]
    return [" ".join(said[at : at + SHINGLE]) for at in range(len(said) - SHINGLE + 1)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
