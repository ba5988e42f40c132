"""What the tabs of one board share while it is built, and the register of translatable components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.blocks import Block
from gradio.events import Dependency

from app.i18n import message, tr
from app.watch import Watch
from core.errors import InputError

Component = TypeVar("Component", bound=Block)

TELLING: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
"""For events that may `warn`, or set a gr.State which others listen to: gradio tells of both for queued events alone.
Without `show_progress_on` gradio would tell each output, hidden or not, that the event begins and ends: of the fields
of a run that took the page seconds."""
QUIET: dict[str, Any] = {**TELLING, "queue": False}
"""For the many small events: 200 viewers at one a second would fill the queue."""


@dataclass
class Page:
    """One board: its workspace, the state every tab reads, and the components that change with the language."""

    workspace: Path
    language: gr.State
    """Code of the language of this browser: en, ru or zh."""
    run: gr.State
    """Name of the run that the live panel shows, "" for none."""
    tabs: gr.Tabs
    clone: gr.State
    """(name of the run that the Train form shall take its settings from, a number that makes each wish a change)."""
    subject: gr.State
    """(name of the run that the other tabs shall be about, a number that makes each wish a change)."""
    data: gr.State
    """(settings of a run that the Train form shall take, a number that makes each wish a change)."""
    allowed: tuple[Path, ...] = ()
    """Folders outside the workspace that may be read, too."""
    texts: list[tuple[Block, dict[str, str]]] = field(default_factory=list)
    landing: list[Callable[[Dependency], None]] = field(default_factory=list)
    """What follows the event with which the page has come up in its language."""
    watch: Watch = field(default_factory=Watch)
    """The views of the runs, read once for all who look."""

    def say(self, component: Component, **keys: str) -> Component:
        """Give a component its texts by locale key (label="ui.board.run") now and whenever the language changes."""
        for name, key in keys.items():
            setattr(component, name, tr("en", key))
        self.texts.append((component, keys))
        return component

    def translated(self, language: str) -> list[Any]:
        """Return one update for each registered component, in the order of registration."""
        return [gr.update(**_texts(language, keys)) for _, keys in self.texts]


def warn(language: str, error: InputError) -> None:
    """Say on the page why something is refused; only events that are queued can."""
    gr.Warning(escape(message(language, error.code, error.params)))


def _texts(language: str, keys: dict[str, str]) -> dict[str, Any]:
    return {name: tr(language, key) for name, key in keys.items()}
