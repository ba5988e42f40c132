"""Rows of data as HTML: a table, tokens in colours, a histogram, findings. What rows say is text, never markup."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from app.i18n import language_name, message, number, tr

LINES = 30
"""Line numbers named for a finding; each opens its row."""
BROKEN = 100
"""Broken rows that are told on the page; the command line tells all."""
SHARE = 0.05
"""Of the rows; languages of fewer are mostly told wrong."""
COLUMNS = 8
"""Columns of a table at most."""
TOKENS = 6000
"""Tokens of a row that are drawn at most."""
PARTS = ("tokens", "ids", "learned", "special")
"""What is told of the tokens of a row, each a list."""
BLANKS = str.maketrans({"\n": "↵\n", "\t": "→\t"})
"""Line breaks and tabs are tokens, too, and can be seen."""


def table(language: str, page: dict[str, Any]) -> str:
    """Return a page of rows as they are in their file; a broken one tells what is wrong with it."""
    if not page["rows"] and page["next"]:
        return f"<p>{_say(language, 'searched', line=number(language, page['next'] % (1 << 40)))}</p>"
    if not page["rows"]:
        return f"<p>{_say(language, 'no_rows')}</p>"
    columns = list(dict.fromkeys(name for row in page["rows"] for name in row.get("cells", {})))[:COLUMNS]
    head = "".join(f"<th>{escape(name)}</th>" for name in ["#", *columns])
    body = "".join(_row(language, row, columns, several=page["several"]) for row in page["rows"])
    return f'<div class="tb-table tb-answers"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(language: str, row: dict[str, Any], columns: Sequence[str], *, several: bool) -> str:
    line = f"<td>{_place(language, row['line'], row['file'] if several else '')}</td>"
    if error := row.get("error"):
        said = escape(message(language, error["code"], error["params"]))
        return (
            f'<tr class="tb-broken">{line}<td colspan="{max(len(columns), 1)}"><div role="alert">{said}</div></td></tr>'
        )
    cells = "".join(_cell(name, row["cells"].get(name, "")) for name in columns)
    return f"<tr>{line}{cells}</tr>"


def _place(language: str, line: int, file: str) -> str:
    """Return where a row stands: the number of its line, in a folder of files with the name of its file."""
    return f"{escape(file)}: {number(language, line)}" if file else number(language, line)


def _cell(name: str, said: str) -> str:
    return f'<td data-label="{escape(name)}"><div class="tb-text" dir="auto">{escape(said)}</div></td>'


def tokens(language: str, row: dict[str, Any]) -> str:
    """Return a row as the model gets it, each token by what becomes of it; a comparison shows both answers."""
    if error := row.get("error"):
        return problem(language, error["code"], error["params"])
    parts = []
    for index, pieces in enumerate(row["answers"]):
        if len(row["answers"]) > 1:
            parts.append(f"<h3>{_say(language, 'chosen' if index == 0 else 'rejected')}</h3>")
        parts += [_piece(language, piece) for piece in pieces]
    title = tr(language, "ui.data.row", line=number(language, row["line"]))
    legend = _legend(language, ("learned", "read", "special", "cut"))
    return f"<h2>{escape(title)}</h2>{legend}{''.join(parts)}"


def _piece(language: str, piece: dict[str, Any]) -> str:
    learned = sum(a and b for a, b in zip(piece["learned"], piece["kept"], strict=True))
    counts = {"tokens": number(language, len(piece["ids"])), "learned": number(language, learned),
              "cut": number(language, len(piece["kept"]) - sum(piece["kept"]))}  # fmt: skip
    drawn = "".join(map(_token, *(piece[key][:TOKENS] for key in ("tokens", "ids", "learned", "kept", "special"))))
    said = escape(tr(language, "ui.data.counts", **counts))
    return f'<p class="tb-muted">{said}</p><div class="tb-tokens" tabindex="0" dir="auto">{drawn}</div>'


def packs(language: str, found: dict[str, Any]) -> str:
    """Return a line of tokens that rows share, with the bounds between them: none sees another."""
    used = sum(len(row["ids"]) for row in found["rows"])
    keys = {"pack": found["pack"], "packs": found["packs"], "rows": len(found["rows"]), "tokens": used,
            "cutoff": found["cutoff"], "fill": round(100 * used / found["cutoff"], 1)}  # fmt: skip
    told = escape(tr(language, "ui.data.pack_told", **{key: number(language, value) for key, value in keys.items()}))
    drawn = ""
    for row in found["rows"]:
        drawn += f'<b class="tb-seam">{number(language, len(row["ids"]))}</b>'
        drawn += "".join(
            _token(text, index, learned, True, special)
            for text, index, learned, special in zip(*(row[key] for key in PARTS), strict=True)
        )
    legend = _legend(language, ("learned", "read", "special"))
    return f'{legend}<p>{told}</p><div class="tb-tokens" tabindex="0">{drawn}</div>'


def _legend(language: str, kinds: Sequence[str]) -> str:
    told = "".join(f'<span class="tb-token tb-{kind}">{_say(language, f"token.{kind}")}</span>' for kind in kinds)
    return f'<div class="tb-legend">{told}</div>'


def _token(text: str, index: int, learned: bool, kept: bool, special: bool) -> str:
    kind = "cut" if not kept else "learned" if learned else "read"
    more = " tb-special" if special else ""
    return f'<span class="tb-token tb-{kind}{more}" title="{index}">{escape(text.translate(BLANKS)) or "·"}</span>'


def lengths(language: str, found: dict[str, Any]) -> str:
    """Return the histogram of the lengths with the cutoff in it, and what it says in words."""
    most, last = max(found["counts"]), found["edges"][-1]
    edges = pairwise(found["edges"])
    bars = "".join(
        _bar(language, count, most, low, high, cut=low >= found["cutoff"])
        for count, (low, high) in zip(found["counts"], edges, strict=True)
    )
    share = min(max((found["cutoff"] - found["edges"][0]) / max(last - found["edges"][0], 1), 0), 1)
    mark = f'<b style="left:{share * 100:.4g}%"></b>' if found["cutoff"] <= last else ""
    keys = ("rows", "mean", "p95", "longest", "cutoff", "cut", "tokens", "packs")
    told = {key: number(language, found[key]) for key in keys} | {"fill": number(language, found["fill"] * 100)}
    said = escape(tr(language, "ui.data.lengths_told", **told))
    if found["dropped"]:
        params = {"count": found["dropped"], "rows": found["rows"] + found["dropped"], "cutoff": found["cutoff"]}
        said += " " + escape(message(language, "data.dropped", params))
    ends = f"<span>{number(language, round(found['edges'][0]))}</span><span>{number(language, round(last))}</span>"
    return (
        f'<figure class="tb-histogram" role="img" aria-label="{said}"><div class="tb-bars">{bars}{mark}</div>'
        f'<div class="tb-ends" aria-hidden="true">{ends}</div><figcaption>{said}</figcaption></figure>'
    )


def _bar(language: str, count: int, most: int, low: float, high: float, *, cut: bool) -> str:
    height = max(count / most * 100, 1 if count else 0)
    said = f"{number(language, round(low))}–{number(language, round(high))}: {number(language, count)}"
    return f'<i class="tb-{"cut" if cut else "learned"}" style="height:{height:.3g}%" title="{said}"></i>'


def report(language: str, found: dict[str, Any]) -> str:
    """Return the findings, each with buttons that open their rows; the languages; the complexity card."""
    parts = []
    if found["broken"]:
        parts.append(f'<li class="tb-finding">{_say(language, "broken_told", n=found["broken"])}</li>')
    for finding in found["findings"]:
        params = {"count": finding["count"], "rows": found["rows"], "lines": _lines_told(language, finding)}
        said = message(language, finding["code"], params)
        files = finding["files"] or [""] * len(finding["lines"])
        opened = "".join(
            f'<button class="tb-link" data-line="{place}">{_place(language, line, file)}</button> '
            for place, line, file in list(zip(finding["places"], finding["lines"], files, strict=True))[:LINES]
        )
        parts.append(f'<li class="tb-finding"><p>{escape(said)}</p><div class="tb-lines">{opened}</div></li>')
    listed = f"<ul>{''.join(parts)}</ul>" if parts else f"<p>{_say(language, 'clean')}</p>"
    more = _languages(language, found["languages"]) + card(language, found["card"])
    return f'<div class="tb-report">{listed}{more}</div>'


def _lines_told(language: str, finding: dict[str, Any]) -> str:
    shown = ", ".join(number(language, line) for line in finding["lines"][:3])
    return f"{shown}, …" if finding["count"] > 3 else shown


def _languages(language: str, shares: dict[str, float]) -> str:
    told = ", ".join(
        f"{language_name(language, code)} {number(language, round(share * 100))} %"
        for code, share in shares.items() if share >= SHARE and code != "?"
    )  # fmt: skip
    return f"<p>{_say(language, 'languages')}: {escape(told)}</p>" if told else ""


def card(language: str, figures: dict[str, Any]) -> str:
    """Return the complexity card as a table."""
    head = "".join(
        f'<th class="tb-number">{escape(tr(language, f"ui.cli.data.{key}"))}</th>' for key in ("mean", "std", "p95")
    )
    body = ""
    for name, values in figures.items():
        label = escape(tr(language, f"ui.cli.data.{name}"))
        shown = [values[key] for key in ("mean", "std", "p95")] if isinstance(values, dict) else [values, None, None]
        cells = "".join(f'<td class="tb-number">{number(language, v) if v is not None else ""}</td>' for v in shown)
        body += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    table_ = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>{_say(language, "card")}</h2><div class="tb-table">{table_}</div>'


def inspection(language: str, found: dict[str, Any]) -> str:
    """Return what a set is: format, mapping, rows, every broken one."""
    mapping = ", ".join(f"{key} = {value}" for key, value in found["mapping"].items())
    facts = {"format": found["format"], "mapping": mapping, "rows": number(language, found["rows"]),
             "broken": number(language, found["broken"]), "language": found["language"]}  # fmt: skip
    told = "".join(
        f"<dt>{escape(tr(language, f'ui.cli.data.{key}'))}</dt><dd>{escape(value)}</dd>"
        for key, value in facts.items() if value
    )  # fmt: skip
    errors = "".join(
        f"<li>{escape(message(language, error['code'], error['params']))} "
        f'<button class="tb-link" data-line="{error["place"]}">{_say(language, "open_row")}</button></li>'
        for error in found["errors"][:BROKEN]
    )
    if (more := found["broken"] - BROKEN) > 0:
        errors += f"<li>{_say(language, 'more_broken', n=more)}</li>"
    return f'<dl class="tb-facts">{told}</dl>' + (f'<ul class="tb-errors" role="alert">{errors}</ul>' if errors else "")


def problem(language: str, code: str, params: dict[str, Any]) -> str:
    """Return what stands in the way, in place of a view."""
    return f'<p class="tb-problem" role="alert">{escape(message(language, code, params))}</p>'


def _say(language: str, key: str, **params: Any) -> str:
    return escape(tr(language, f"ui.data.{key}", **params))
