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
FIELDS = ("prompt", "query", "response", "messages", "system", "chosen", "rejected", "kto_tag")
"""Columns that can be named on the board; the file dataset_info.json knows more."""
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
            format_ = gr.Dropdown(formats, visible=False, filterable=False, elem_id="tb-data-format", **wide)
            columns = [
                gr.Dropdown([], visible=False, allow_custom_value=True, elem_id=f"tb-data-{key}") for key in FIELDS
            ]
        self.add = page.say(gr.Button(visible=False, variant="primary", elem_id="tb-data-add"), value="ui.data.add")
        self.told = gr.HTML(elem_id="tb-data-told")
        page.say(self.file, label="ui.data.drop")
        page.say(title, label="ui.data.name")
        page.say(format_, label="ui.data.format", info="ui.data.format_help")
        for key, column in zip(FIELDS, columns, strict=True):
            page.say(column, label=f"ui.data.field.{key}")
        self.fields = [title, format_, *columns]
        self.file.change(
            self.detect, [self.file, page.language], [*self.fields, self.add, self.told], **TELLING
        )  # fmt: skip
        format_.input(self.turn, [format_, *columns], columns, **QUIET)

    def detect(self, file: str | None, language: str) -> list[Any]:
        """Look at a dropped file and fill in what it seems to be."""
        hidden = [gr.update(visible=False)] * (3 + len(FIELDS))
        if not file:
            return [*hidden, ""]
        try:
            found = self._look(file, 5)
        except InputError as error:
            return [*hidden, dataview.problem(language, error.code, error.params)]
        entry = found["entry"]
        known = variants("core.formats")[entry["formatting"]].model_fields
        columns = list(dict.fromkeys(name for row in found["rows"] for name in row.get("cells", {})))
        updates = []
        for key in FIELDS:
            usual = known[key].default if key in known else None
            value = entry.get("columns", {}).get(key, usual)
            shown = key in known and (value in columns or key in ("prompt", "response"))
            updates.append(gr.update(visible=shown, choices=columns, value=value))
        title = re.sub(r"[^\w .-]", "_", Path(file).name.partition(".")[0])
        preview = f"<p>{tr(language, 'ui.data.detected')}</p>" + dataview.table(language, found)
        return [gr.update(visible=True, value=title), gr.update(visible=True, value=entry["formatting"]), *updates,
                gr.update(visible=True), preview]  # fmt: skip

    def turn(self, format_: str, *columns: Any) -> list[Any]:
        """Offer the columns that another format has, under their usual names."""
        kind = variants("core.formats").get(format_)
        known = kind.model_fields if kind else {}
        return [
            gr.update(visible=key in known, value=column or (known[key].default if key in known else None))
            for key, column in zip(FIELDS, columns, strict=True)
        ]

    def make(self, file: str | None, language: str, name: str, format_: str, *columns: Any) -> tuple[str, str]:
        """Make the dropped file a set; return (its name, what to say). Raises InputError."""
        if not file:
            raise InputError("path.missing", "data", path="")
        kind = variants("core.formats").get(format_)
        known = kind.model_fields if kind else {}
        entry = self._look(file, 1)["entry"]
        seen = entry if entry["formatting"] == format_ else {}  # of another format nothing that was seen holds
        kept = {key: value for key, value in seen.get("columns", {}).items() if key not in FIELDS}
        given = {key: str(value) for key, value in zip(FIELDS, columns, strict=True)
                 if value and key in known and value != known[key].default}  # fmt: skip
        more = {key: seen[key] for key in ("tags", "ranking") if key in seen}
        entry = {"formatting": format_, "columns": kept | given, **more}
        made = add(Path(file), self.page.workspace / FOLDER, str(name or "").strip(), entry)
        return made["name"], tr(language, "ui.cli.data.added", name=made["name"], folder=FOLDER)

    def _look(self, file: str, count: int) -> dict[str, Any]:
        path = Path(file)
        return ask("page", self.page.workspace, {"folder": str(path.parent), "train": [path.name]}, count=count)
