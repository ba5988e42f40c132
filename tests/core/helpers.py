"""A run in this process, stopped at a chosen step; sums of what it wrote."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from core import config, events
from core.workspace import Context


class StoppingWriter(events.Writer):
    """Writer that asks the run to stop so that its last step is `at`."""

    def __init__(self, folder: Path, stop: threading.Event, at: int | None) -> None:
        super().__init__(folder)
        self.stop, self.at = stop, at

    def write(self, type_: str, **fields: Any) -> None:
        super().write(type_, **fields)
        if type_ == "step" and fields["step"] + 1 == self.at:
            self.stop.set()


def train(folder: Path, stop_at: int | None = None) -> dict[str, float]:
    """Do what core.worker does, in this process."""
    job = config.load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
    assert isinstance(job, config.Run)
    stop = threading.Event()
    writer = StoppingWriter(folder, stop, stop_at)
    try:
        writer.write("started", job="train", pid=0)
        return job.stage.train(job, Context(folder, folder.parents[1], writer, stop))
    finally:
        writer.close()


def of_type(folder: Path, type_: str) -> list[dict[str, Any]]:
    return [event for event in events.tail(folder) if event["type"] == type_]


def weights(folder: Path) -> dict[str, Any]:
    """Return every tensor of the safetensors files in a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def digest(folder: Path) -> str:
    """Return one sha256 over the weights in a folder, by name and bits."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights(folder).items()):
        total.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
