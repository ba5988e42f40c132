"""A file of the reader's own: dropped, looked at, named, and made a set of the workspace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr

from app import dataview
from app.desk import ask
from app.i18n import tr
from app.page import QUIET, TELLING, Page
from core.data.add import add
from core.errors import InputError
from core.schema import variants

FOLDER = "data"
"""Data folder of the workspace to which dropped files go."""
FIELDS = ("prompt", "query", "response", "messages", "history", "system", "tools", "images", "chosen", "rejected",
          "kto_tag")  # fmt: skip
"""Columns that can be named on the board; the file dataset_info.json knows more."""
USUAL = ("prompt", "response", "messages")
"""Columns that are asked for even where the file has none of that name."""
ENCODINGS = ["utf-8", "cp1251", "gb18030", "cp1252", "shift_jis"]
ENDINGS = [".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz"]


class Dropped:
    """The card in which a file is dropped and described."""

    def __init__(self, page: Page) -> None:
        self.page = page
        wide: dict[str, Any] = {"elem_classes": ["tb-wide"]}
        with page.say(gr.Accordion(elem_classes=["tb-card"]), label="ui.data.add_card"):
            self.file = gr.File(file_types=ENDINGS, type="filepath", elem_id="tb-data-file", height=96, **wide)
            title = gr.Textbox(max_lines=1, visible=False, elem_id="tb-data-name", **wide)
            formats = list(variants("core.formats"))
            format_ = gr.Dropdown(formats, visible=False, filterable=False, elem_id="tb-data-format")
            encoding = gr.Dropdown(
                ENCODINGS, value="utf-8", visible=False, elem_id="tb-data-encoding", filterable=False
            )
            columns = [
                gr.Dropdown([], visible=False, allow_custom_value=True, elem_id=f"tb-data-{key}") for key in FIELDS
            ]
        self.add = page.say(gr.Button(visible=False, variant="primary", elem_id="tb-data-add"), value="ui.data.add")
        self.told = gr.HTML(elem_id="tb-data-told")
        page.say(self.file, label="ui.data.drop")
        page.say(title, label="ui.data.name")
        page.say(format_, label="ui.data.format", info="ui.data.format_help")
        page.say(encoding, label="ui.data.encoding", info="ui.data.encoding_help")
        for key, column in zip(FIELDS, columns, strict=True):
            page.say(column, label=f"ui.data.field.{key}")
        self.fields = [title, format_, encoding, *columns]
        outputs = [*self.fields, self.add, self.told]
        self.file.change(self.detect, [self.file, page.language], outputs, **TELLING)
        encoding.input(self.detect, [self.file, page.language, encoding], outputs, **TELLING)
        format_.input(self.turn, [format_, *columns], columns, **QUIET)

    def detect(self, file: str | None, language: str, encoding: str = "utf-8") -> list[Any]:
        """Look at a dropped file and fill in what it seems to be; where that can't be told, let it be said."""
        hidden = gr.update(visible=False)
        nothing = [hidden] * (3 + len(FIELDS) + 1)
        if not file:
            return [*nothing, ""]
        readable = gr.update(visible=not file.lower().endswith((".parquet", ".arrow")), value=encoding)
        try:
            found = self._look(file, 5, encoding)
        except InputError as error:
            shown = dataview.problem(language, error.code, error.params)
            return [hidden, hidden, readable if error.code == "data.not_utf8" else hidden, *nothing[3:], shown]
        entry = found["entry"]
        told = dataview.problem(language, **entry["problem"]) if "problem" in entry else ""
        entry = {"formatting": "alpaca"} if told else entry
        title = re.sub(r"[^\w .-]", "_", Path(file).name.partition(".")[0])
        preview = told or f"<p>{tr(language, 'ui.data.detected')}</p>"
        return [
            gr.update(visible=True, value=title),
            gr.update(visible=True, value=entry["formatting"]),
            readable,
            *self._columns(found, entry),
            gr.update(visible=True),
            preview + dataview.table(language, found),
        ]

    def _columns(self, found: dict[str, Any], entry: dict[str, Any]) -> list[Any]:
        """Return an update for each of FIELDS: those that the format has and the file, or must have."""
        known = variants("core.formats")[entry["formatting"]].model_fields
        columns = list(dict.fromkeys(name for row in found["rows"] for name in row.get("cells", {})))
        updates = []
        for key in FIELDS:
            value = entry.get("columns", {}).get(key, known[key].default if key in known else None)
            shown = key in known and (value in columns or key in USUAL)
            updates.append(gr.update(visible=shown, choices=columns, value=value))
        return updates

    def turn(self, format_: str, *columns: Any) -> list[Any]:
        """Offer the columns that another format has, under their usual names."""
        kind = variants("core.formats").get(format_)
        known = kind.model_fields if kind else {}
        return [
            gr.update(visible=key in known, value=column or (known[key].default if key in known else None))
            for key, column in zip(FIELDS, columns, strict=True)
        ]

    def make(
        self, file: str | None, language: str, name: str, format_: str, encoding: str, *columns: Any
    ) -> tuple[str, str]:
        """Make the dropped file a set; return (its name, what to say). Raises InputError."""
        if not file:
            raise InputError("path.missing", "data", path="")
        kind = variants("core.formats").get(format_)
        known = kind.model_fields if kind else {}
        entry = self._look(file, 1, encoding)["entry"]
        seen = entry if entry.get("formatting") == format_ else {}  # of another format nothing that was seen holds
        kept = {key: value for key, value in seen.get("columns", {}).items() if key not in FIELDS}
        given = {key: str(value) for key, value in zip(FIELDS, columns, strict=True)
                 if value and key in known and value != known[key].default}  # fmt: skip
        more = {key: seen[key] for key in ("tags", "ranking") if key in seen}
        more |= {"encoding": encoding} if encoding != "utf-8" else {}
        entry = {"formatting": format_, "columns": kept | given, **more}
        made = add(Path(file), self.page.workspace / FOLDER, str(name or "").strip(), entry)
        return made["name"], tr(language, "ui.cli.data.added", name=made["name"], folder=FOLDER)

    def _look(self, file: str, count: int, encoding: str) -> dict[str, Any]:
        path = Path(file)
        data = {"folder": str(path.parent), "train": [path.name]}
        return ask("page", self.page.workspace, data, count=count, encoding=encoding)
