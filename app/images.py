"""The image beside the question in the chat: a button that takes one, and a sign for it in the conversation."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app import talk
from app.i18n import tr
from app.page import QUIET, Page
from core.serving.client import image_part

SIGN = "\U0001f5bc\ufe0f "
NAME = 20
"""Characters of the name of a file that the button shows."""


def button(page: Page) -> gr.UploadButton:
    """Return the button, hidden until a model that sees is there.

    It hands the file on as it is: an image component would decode in the board's own process whatever somebody sends.
    """
    made = gr.UploadButton(
        file_types=["image"], type="filepath", min_width=80, scale=0, visible=False, elem_id="tb-chat-image"
    )
    return page.say(made, label="ui.chat.image")


def wire(page: Page, image: gr.UploadButton, clear: gr.Button) -> None:
    """Show which image is chosen; Clear forgets it."""
    image.upload(lambda path: gr.update(label=SIGN + Path(path).name[:NAME]), image, image, **QUIET)
    clear.click(none, page.language, image, **QUIET)


def none(language: str) -> Any:
    """Return the update that forgets the image."""
    return gr.update(value=None, label=tr(language, "ui.chat.image"))


def parts(path: Any) -> list[talk.Part]:
    """Return the chosen image, if there is one; raise InputError when it can't be read."""
    return [image_part(Path(path))] if path else []


def told(message: talk.Message) -> str:
    """Return a message as its column shows it: what anybody says is text, never HTML; a sign stands for an image."""
    return SIGN * len(talk.images(message)) + escape(talk.text(message))
