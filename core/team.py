"""The processes of one run as they see each other: who is first, and what all of them must agree on.

Alone, nothing here does anything. torch is imported by those who join others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.crew import FIRST, MEETING
from core.errors import InputError, Problem, TuneboardError
from core.files import has_checkpoint

if TYPE_CHECKING:
    from core.sections import Hardware

LONG = timedelta(days=30)
"""A process may wait for another that reads data or saves for hours; the supervisor sees to it that none waits for one
that has died."""
MOMENT = 6.0
"""Seconds after which the supervisor has certainly noticed that a process has ended."""


@dataclass
class Team:
    """The place of this process among all of them."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its number on its machine."""
    group: Any = field(default=None, repr=False)
    """The processes as torch.distributed knows them, over a network of the CPUs."""

    @staticmethod
    def called() -> Team:
        """Return the place that the supervisor has given this process."""
        rank, size, local = (int(os.environ.get(name, last)) for name, last in
                             (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))  # fmt: skip
        return Team(rank, size, local)

    def join(self, folder: Path, hardware: Hardware, *, divides: bool = False) -> None:
        """Meet the others; from here on this process computes on its own device.

        divides: what divides the model asks for a meeting even of one.
        """
        if self.size == 1 and not divides:
            return
        import torch
        from torch import distributed

        from core.models.device import pick_device

        device = pick_device(hardware)
        if device.type == "mps":
            raise InputError("launcher.mps", "launcher")
        if device.type == "cuda":
            torch.cuda.set_device(self.local)
        else:
            os.environ["DS_ACCELERATOR"] = device.type  # DeepSpeed guesses otherwise
        alone = "MASTER_ADDR" not in os.environ  # on one machine no port is needed to meet
        if alone and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else needs to hear
        place = f"file://{folder / MEETING / 'store'}" if alone else "env://"
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=place, rank=self.rank, world_size=self.size)
        self.group = distributed.new_group(backend="gloo", timeout=LONG)

    def leave(self) -> None:
        """Part from the others."""
        if self.group is not None:
            from torch import distributed

            distributed.destroy_process_group()
            self.group = None

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.group is not None:
            from torch import distributed

            distributed.barrier(self.group)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process do something, then the first of each machine, then the others.

        What one fetches, makes or keeps, the next ones find.
        """
        turn = 0 if self.rank == 0 else 1 if self.local == 0 else 2
        for _ in range(turn):
            self.wait()
        yield
        for _ in range(2 - turn):
            self.wait()

    def agreed(self, number: int) -> int:
        """Return the number of the first process."""
        if self.group is None:
            return number
        import torch
        from torch import distributed

        told = torch.tensor(number)
        distributed.broadcast(told, 0, group=self.group)
        return int(told)

    def any(self, flag: bool) -> bool:
        """Return whether one of all is true."""
        if self.group is None:
            return flag
        import torch
        from torch import distributed

        told = torch.tensor(int(flag))
        distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self.group)
        return bool(told)

    def means(self, numbers: list[float]) -> list[float]:
        """Return the mean over all processes of each of some numbers, of which all have as many."""
        if self.group is None or not numbers:
            return numbers
        import torch
        from torch import distributed

        told = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(told, group=self.group)
        return (told / self.size).tolist()

    def confess(self, folder: Path, error: TuneboardError) -> None:
        """Leave word of why this process fails, for the first one, which alone writes events."""
        word = {"code": error.exit_code, "problems": [vars(problem) for problem in error.problems]}
        (folder / MEETING / f"{self.rank}.json").write_text(json.dumps(word), encoding="utf-8")

    def blame(self, folder: Path, error: TuneboardError) -> TuneboardError:
        """Return why the first process failed that did, for what an unforeseen error here is mostly but the echo of.

        It is `error` where no other one has failed.
        """
        until = time.monotonic() + MOMENT
        while not (word := _read(folder / MEETING / FIRST)) and time.monotonic() < until:
            time.sleep(0.1)
        if not word or word["rank"] == self.rank:
            return error
        rank, status = word["rank"], word["status"]
        if status < 0:
            code = "rank.died" if has_checkpoint(folder) else "rank.died_early"
            return TuneboardError(code, rank=rank, size=self.size, signal=-status)
        told = _read(folder / MEETING / f"{rank}.json")
        if not told:
            return TuneboardError("rank.failed", rank=rank, size=self.size, status=status)
        family = {cls.exit_code: cls for cls in TuneboardError.__subclasses__()}
        problems = tuple(Problem(**problem) for problem in told["problems"])
        return family.get(told["code"], TuneboardError)("", problems=problems)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
