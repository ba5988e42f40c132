"""The real board as a process of its own, and Chromium to drive it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, expect

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(http://\S+\?token=\S+)")
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LEAVING = ("AbortError", "Connection errored out")
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@dataclass
class Board:
    """`tuneboard board` on a workspace; it can be killed and started again."""

    workspace: Path
    port: int
    process: subprocess.Popen[str] | None = None
    output: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = self.workspace / "board.log"
        log.write_text("")
        command = [
            sys.executable,
            "-m",
            "app.cli",
            "board",
            "--port",
            str(self.port),
            "--workspace",
            str(self.workspace),
        ]
        with log.open("w") as out:
            environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, text=True, env=environment)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert self.process.poll() is None, log.read_text()
            try:
                if httpx.get(f"{self.address}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise TimeoutError(log.read_text())

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def link(self) -> str:
        """Return the newest sign-in link that the board printed."""
        return LINK.findall((self.workspace / "board.log").read_text())[-1]

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


def chromium(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)


def visitor(browser: Browser, board: Board, *, phone: bool = False, dark: bool = False, locale: str = "en-US") -> Page:
    """Return a signed-in page of a fresh browser profile; what goes wrong on it is kept in `page.faults`."""
    context: BrowserContext = browser.new_context(
        viewport=PHONE if phone else DESKTOP, color_scheme="dark" if dark else "light", locale=locale
    )
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"page error: {error}"))
    page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
    page.on("request", lambda request: None if ours(request.url, board) else faults.append(f"outside: {request.url}"))
    page.faults = faults  # type: ignore[attr-defined]
    page.goto(board.link())
    expect(page.locator("#tb-start")).to_be_visible(timeout=60_000)
    return page


def is_fault(message: ConsoleMessage) -> bool:
    """Whether a message of the console is an error; a reload cuts what gradio was waiting for, and gradio says so."""
    return message.type == "error" and not any(words in message.text for words in LEAVING)


def ours(url: str, board: Board) -> bool:
    return url.startswith((board.address, "data:", "blob:"))
