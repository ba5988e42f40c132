"""`tuneboard trust`: look at the code that a model brings, agree to it, list and take back what was agreed to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from app import i18n
from app.cli_options import Json, Place, option, room
from app.cli_speak import Answer, answering, console, language, note, out, plain, say
from core import workspace
from core.errors import InputError
from core.models import consent
from core.models.consent import SHORT, Code
from core.models.inspect import foreign_code

YES = ("yes", "да", "是")


def trust(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help=say("option.trusted"))] = "",
    sure: Annotated[bool, option("yes", "--yes", "-y")] = False,
    all_: Annotated[bool, option("trust_list", "--list", "-l")] = False,
    revoke: Annotated[bool, option("revoke", "--revoke")] = False,
    place: Place = None,
    as_json: Json = False,
) -> None:
    with answering(as_json) as answer:
        if all_ or not model:
            list_(answer)
        elif revoke:
            take_back(model, room(place), answer)
        else:
            agree(workspace.locate(model, room(place)), sure, answer)


def agree(folder: Path, sure: bool, answer: Answer) -> None:
    """Show the code of a model and what it may do; keep the consent of whoever says yes."""
    code = foreign_code(folder)
    if code is None:
        raise InputError("code.none", "model.path", folder=str(folder))
    answer.fields |= {"folder": str(code.folder), "type": code.type, "sha256": code.sha, "files": code.sums,
                      "classes": code.classes, "agreed": False}  # fmt: skip
    _show(code)
    note(say("trust.danger"), style="bold red")
    if not sure and not _asked(answer):
        raise InputError("code.not_agreed")
    consent.give(code)
    answer.fields["agreed"] = True
    answer.show(say("trust.agreed", sha=code.sha[:SHORT]))


def list_(answer: Answer) -> None:
    """Print what was agreed to."""
    kept = consent.given()
    answer.fields["consents"] = [{"sha256": sha, **entry} for sha, entry in kept.items()]
    if not kept:
        note(say("trust.nothing"))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("sha", "agreed_on", "folder"):
        table.add_column(say(f"trust.{name}"), no_wrap=name != "folder", overflow="fold")
    for sha, entry in kept.items():
        table.add_row(sha[:SHORT], entry["agreed"], plain(entry["folder"]))
    answer.show(table)


def take_back(name: str, place: Path, answer: Answer) -> None:
    """Forget a consent: that for a folder, which may be gone by now, or one by the beginning of its sha256."""
    gone = consent.take_back((place / Path(name).expanduser()).resolve(), name)
    if not gone:
        raise InputError("code.no_consent", given=name)
    answer.fields["taken_back"] = gone
    answer.show(say("trust.taken_back", folder=", ".join(map(plain, gone))))


def _show(code: Code) -> None:
    """Print the files and the classes that are run."""
    note(say("trust.brings", folder=plain(str(code.folder)), type=plain(code.type)))
    for name, content in code.files.items():
        note(f"  {plain(name)}  {i18n.size(language(), len(content))}  sha256 {code.sums[name]}")
    for name, cls in code.classes.items():
        note(f"  {plain(name)} → {cls}")


def _asked(answer: Answer) -> bool:
    """Ask; the end of the input is a no. With --json nobody is asked."""
    if answer.as_json:
        return False
    out(say("trust.ask"))
    try:
        return console(stderr=False).input("> ").strip().casefold() in YES
    except EOFError:
        return False
