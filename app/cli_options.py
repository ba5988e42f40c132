"""What the commands of the command line have in common: declared options, the workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli_speak import say
from core import workspace
from core.models import consent


def option(key: str, *flags: str, **more: Any) -> typer.models.OptionInfo:
    """Declare an option whose help is a locale key below ui.cli.option."""
    return typer.Option(*flags, help=say(f"option.{key}"), show_default=False, **more)


Place = Annotated[Path | None, option("workspace", "--workspace", "-w")]
Json = Annotated[bool, option("json", "--json")]


RemoteCode = Annotated[bool, option("remote_code", "--remote-code", callback=consent.allow)]
"""The one way to let code run that a model brings; a process that is started without it takes none over."""


def room(place: Path | None) -> Path:
    """Return the workspace of a command: the one named, else that of the process."""
    return place.expanduser().resolve() if place else workspace.default()
