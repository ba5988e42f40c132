"""Questions about data, answered by a process of their own: neither the board nor the command line reads rows."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.runs import environment
from core.workspace import BUNDLED

SECONDS = 900
"""After which a question is given up."""
QUIET = ["-W", "ignore"]


def ask(
    what: str,
    workspace: Path,
    data: dict[str, Any],
    *,
    advance: Callable[[int], None] = lambda done: None,
    begun: Callable[[subprocess.Popen[str]], None] = lambda child: None,
    **more: Any,
) -> dict[str, Any]:
    """Return the answer to a question of core.data.desk. Raises InputError with what is wrong with the data.

    data: settings of the section `data`; its first training set is what is asked about. `advance` hears, from another
    thread, how many rows are done. `begun` is given the process that looks for the answer: to end it ends the question.
    """
    question = {"ask": what, "workspace": str(workspace), "data": data, **more}
    command = [sys.executable, *QUIET, "-m", "core.data.desk"]
    with subprocess.Popen(
        command, cwd=BUNDLED, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8",
    ) as child:  # fmt: skip
        begun(child)
        said: list[str] = []
        listener = threading.Thread(target=_listen, args=(child.stderr, advance, said), daemon=True)
        listener.start()
        clock = threading.Timer(SECONDS, child.kill)
        clock.start()
        try:
            assert child.stdin and child.stdout
            child.stdin.write(json.dumps(question))
            child.stdin.close()
            answer = child.stdout.read()
        finally:
            clock.cancel()
            child.kill()
        listener.join(5)
    if not answer:
        raise InputError("engine.failed", what=(said or ["?"])[-1][:200])
    try:
        found = json.loads(answer)
    except ValueError:  # it was ended amid the answer
        raise InputError("engine.failed", what=(said or ["?"])[-1][:200]) from None
    if problem := found.get("problem"):
        raise InputError(problem["code"], problem["place"], **problem["params"])
    return found["answer"]


def _listen(stream: Any, advance: Callable[[int], None], said: list[str]) -> None:
    """Hand on the numbers that the child prints; keep its last other words."""
    for line in stream:
        if line.strip().isdigit():
            advance(int(line))
        elif line.strip():
            said[:] = [*said[-20:], line.strip()]


class Questions:
    """The question that each browser waits for: a new one ends the one before, which nobody reads any more."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.newest: dict[str, int] = {}
        """The number of the last question of each browser."""
        self.running: dict[str, subprocess.Popen[str]] = {}

    def end(self, browser: str) -> int:
        """End the question that a browser waits for; return the number of the next."""
        with self.lock:
            if child := self.running.pop(browser, None):
                child.kill()
            self.newest[browser] = self.newest.get(browser, 0) + 1
            return self.newest[browser]

    def ask(self, browser: str, question: Callable[..., dict[str, Any]]) -> Iterator[int | dict[str, Any]]:
        """Ask in a thread; yield how many rows are done from time to time, the answer last; nothing when ended."""
        number, told, found, wrong = self.end(browser), [0], list[dict[str, Any]](), list[InputError]()
        children: list[subprocess.Popen[str]] = []

        def begun(child: subprocess.Popen[str]) -> None:
            children.append(child)
            with self.lock:
                if self.newest.get(browser) == number:
                    self.running[browser] = child
                else:
                    child.kill()

        def work() -> None:
            try:
                found.append(question(advance=lambda done: told.__setitem__(0, done), begun=begun))
            except InputError as error:
                wrong.append(error)
            except OSError as error:
                wrong.append(InputError("engine.failed", what=str(error)[:200]))

        thread, said, since = threading.Thread(target=work, daemon=True), -1, time.monotonic()
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                if told[0] != said and thread.is_alive() and time.monotonic() - since > 1:
                    said = told[0]
                    yield said
        finally:  # also when nobody listens any more
            if thread.is_alive() and self.newest.get(browser) == number:
                self.end(browser)
        if self.newest.get(browser) == number:
            if wrong:
                raise wrong[0]
            yield from found
