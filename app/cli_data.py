"""`tuneboard data`: look at rows before they are trained on, describe files, see what the model gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from app import i18n
from app.cli_options import Json, Place, RemoteCode, option, room
from app.cli_speak import answering, console, language, note, number, out, say
from app.desk import ask
from core import config
from core.errors import InputError
from core.workspace import HUB_ID

SHOWN = 20
"""Broken rows that are printed; --json has more."""

main = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
File = Annotated[str, typer.Argument(metavar="FILE", help=say("option.file"))]
Words = Annotated[list[str] | None, typer.Argument(metavar="key=value", help=say("option.described"))]


def command(name: str):
    """Register a command under its name, with its help from the locale key ui.cli.data.<name>."""
    return main.command(name, help=say(f"data.{name}"), epilog=say("exit_codes"))


@command("inspect")
def inspect(file: File, place: Place = None, as_json: Json = False) -> None:
    with answering(as_json) as answer:
        with progress() as advance:
            found = ask("inspect", room(place), the_set(file, room(place)), advance=advance)
        # "errors" is what the command itself has to complain about
        answer.fields |= {"file": file, **found, "broken_rows": found["errors"]}
        del answer.fields["errors"]
        if found["broken"]:
            answer.status = 2
        if as_json:
            return
        facts = {"format": found["format"], "rows": number(found["rows"]), "broken": number(found["broken"]),
                 "columns": ", ".join(found["columns"]), "language": found["language"]}  # fmt: skip
        facts["mapping"] = ", ".join(f"{key} = {value}" for key, value in found["mapping"].items())
        for key, value in facts.items():
            if value:
                out(f"{say(f'data.{key}')}: {value}")
        for error in found["errors"][:SHOWN]:
            out(f"{error['code']}  {i18n.message(language(), error['code'], error['params'])}")


@command("add")
def add(
    file: File,
    words: Words = None,
    name: Annotated[str, option("set_name", "--name")] = "",
    folder: Annotated[Path | None, option("data_folder", "--folder")] = None,
    place: Place = None,
    as_json: Json = False,
) -> None:
    from core.data.add import add as describe

    with answering(as_json) as answer:
        home = folder.expanduser().resolve() if folder else room(place) / "data"
        made = describe(Path(file).expanduser().resolve(), home, name, config.override(words or []))
        answer.fields |= {**made, "folder": str(home)}
        answer.show(say("data.added", name=made["name"], folder=str(home)))
        answer.show(json.dumps(made["entry"], indent=2, ensure_ascii=False))


@command("render")
def render(
    file: File,
    model: Annotated[str, option("model", "--model", "-m")] = "",
    row: Annotated[int, option("row", "--row", min=1, max=1 << 40)] = 1,
    settings: Annotated[list[str] | None, option("set", "--set", "-s", metavar="key=value")] = None,
    place: Place = None,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    with answering(as_json) as answer:
        more: dict[str, Any] = {"model": {"path": model}} if model else {}
        run = config.run(config.override(settings or []))
        data = run.data.model_dump() | the_set(file, room(place))
        found = ask("render", room(place), data, nth=row, count=1, **run.stage.masks(), **more)["rows"][0]
        if problem := found.get("error"):
            raise InputError(problem["code"], "data", **problem["params"])
        pieces = found["answers"][0]
        answer.fields |= {"line": found["line"], "kind": found["kind"], "answers": found["answers"], **_flat(pieces)}
        if not as_json:
            for number_, own in enumerate(found["answers"]):
                if len(found["answers"]) > 1:
                    out(i18n.tr(language(), "ui.data.rejected" if number_ else "ui.data.chosen"))
                for piece in own:
                    console(stderr=False).print(painted(piece), soft_wrap=True)
            note(say("data.colours"))


@command("report")
def report(
    file: File,
    held_out: Annotated[str, option("eval", "--eval")] = "",
    place: Place = None,
    as_json: Json = False,
) -> None:
    with answering(as_json) as answer:
        with progress() as advance:
            found = ask("report", room(place), {**the_set(file, room(place)), "eval": held_out}, advance=advance)
        answer.fields |= found
        if as_json:
            return
        if found["broken"]:
            out(i18n.tr(language(), "ui.data.broken_told", n=found["broken"]))
        for finding in found["findings"]:
            files = finding["files"] or [""] * len(finding["lines"])
            named = zip(finding["lines"][:SHOWN], files, strict=False)
            lines = ", ".join(f"{name}: {line}" if name else str(line) for line, name in named)
            params = {"count": finding["count"], "rows": found["rows"], "lines": lines}
            out(i18n.message(language(), finding["code"], params))
        if not found["findings"]:
            out(say("data.clean"))
        out(_card(found["card"]))


@command("cache")
def cache(
    clear: Annotated[bool, option("clear", "--clear")] = False, place: Place = None, as_json: Json = False
) -> None:
    from core.data import kept

    with answering(as_json) as answer:
        if clear:
            freed = kept.clear(room(place))
            answer.fields |= {"freed": freed}
            answer.show(say("data.freed", size=i18n.size(language(), freed)))
            return
        found = kept.entries(room(place))
        answer.fields |= {"entries": [vars(entry) for entry in found], "bytes": sum(entry.bytes for entry in found),
                          "folder": str(kept.folder(room(place)))}  # fmt: skip
        size = i18n.size(language(), sum(entry.bytes for entry in found))
        answer.show(say("data.kept", n=len(found), size=size, folder=str(kept.folder(room(place)))))


def the_set(name: str, workspace: Path) -> dict[str, Any]:
    """Return the settings that mean what somebody calls a set: a file or folder, FOLDER/NAME, an address, a hub id."""
    path = Path(name).expanduser().resolve()
    if "://" not in name and (path.exists() or path.parent.is_dir()):
        return {"folder": str(path.parent), "train": [path.name]}
    if "://" in name or HUB_ID.fullmatch(name):
        return {"folder": str(workspace), "train": [name]}
    raise InputError("path.missing", "data", path=name)


@contextmanager
def progress() -> Iterator[Any]:
    """Show on stderr how many rows are done."""
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console(),
                  transient=True) as bar:  # fmt: skip
        task = bar.add_task(say("data.reading", count=0), total=None)
        yield lambda done: bar.update(task, description=say("data.reading", count=number(done)))


def painted(piece: dict[str, Any]) -> Text:
    """Return a piece with its tokens coloured: learned, only read, cut away."""
    text = Text()
    for token, learned, kept in zip(piece["tokens"], piece["learned"], piece["kept"], strict=True):
        text.append(token, style="strike red" if not kept else "black on green" if learned else "dim")
    return text


def _flat(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Return text, token ids and mask of a row as it is trained on; lists of them where it is several pieces."""
    made = []
    for piece in pieces:
        kept = [index for index, stays in enumerate(piece["kept"]) if stays]
        ids, mask = ([piece[key][index] for index in kept] for key in ("ids", "learned"))
        made.append({"text": piece["text"], "ids": ids, "mask": mask})
    return made[0] if len(made) == 1 else {key: [piece[key] for piece in made] for key in ("text", "ids", "mask")}


def _card(card: dict[str, Any]) -> Table:
    """Return the complexity card as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("figure", "mean", "std", "p95"):
        table.add_column(say(f"data.{name}"), justify="left" if name == "figure" else "right")
    table.add_row(say("data.examples"), number(card["examples"]), "", "")
    for name, values in card.items():
        if isinstance(values, dict):
            table.add_row(say(f"data.{name}"), *(number(values[key]) for key in ("mean", "std", "p95")))
    return table
