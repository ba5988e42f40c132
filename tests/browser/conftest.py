"""A workspace with a tiny model and tiny data, the board on it, Chromium."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from driver import Board, chromium
from playwright.sync_api import Browser, expect, sync_playwright

expect.set_options(timeout=60_000)  # a busy machine is no failure


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = chromium(playwright)
        yield opened
        opened.close()


@pytest.fixture(scope="module", autouse=True)
def closed(browser: Browser) -> Iterator[None]:
    """Close the pages of a module: they would ask for a board that is gone."""
    yield
    for context in list(browser.contexts):
        context.close()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Iterator[Board]:
    """A running board on a workspace of its own; whatever was started in it ends with it."""
    workspace = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_model, workspace / "tiny")
    shutil.copytree(tiny_data, workspace / "data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = Board(workspace, port)
    started.start()
    yield started
    started.stop()
    for process in psutil.process_iter(["cmdline"]):
        if any(str(workspace) in word for word in process.info["cmdline"] or []):
            process.kill()
