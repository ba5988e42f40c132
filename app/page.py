"""What the tabs of one board share while it is built, and the register of translatable components."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.blocks import Block

from app.i18n import tr

Component = TypeVar("Component", bound=Block)


@dataclass
class Page:
    """One board: its workspace, the state every tab reads, and the components that change with the language."""

    workspace: Path
    language: gr.State
    """Code of the language of this browser: en, ru or zh."""
    run: gr.State
    """Name of the run that the live panel shows, "" for none."""
    tabs: gr.Tabs
    allowed: tuple[Path, ...] = ()
    """Folders outside the workspace that may be read, too."""
    texts: list[tuple[Block, dict[str, str]]] = field(default_factory=list)

    def say(self, component: Component, **keys: str) -> Component:
        """Give a component its texts by locale key (label="ui.chat.seed") now and whenever the language changes."""
        for name, key in keys.items():
            setattr(component, name, tr("en", key))
        self.texts.append((component, keys))
        return component

    def translated(self, language: str) -> list[Any]:
        """Return one update for each registered component, in the order of registration."""
        return [gr.update(**{name: tr(language, key) for name, key in keys.items()}) for _, keys in self.texts]
