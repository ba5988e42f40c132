"""In how many processes a run learns, and on which machines: one file, one launcher."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, LiteralString

from core.schema import Spec, knob

if TYPE_CHECKING:
    from core.run import Run

ENDPOINT = re.compile(r"[\w.-]+:\d{2,5}")
Against = tuple[LiteralString, str]
"""(code, place) of what stands against a combination of settings."""


class Launcher(Spec):
    """A way to start the processes of a run; `kind` names it."""

    kind: str
    package: ClassVar[str] = ""
    """What must be installed for it."""
    wrapper: ClassVar[str] = ""
    """Name of the class that the model is in while it learns; "" where it is in none."""
    state: ClassVar[frozenset[str]] = frozenset({"optimizer.pt"})
    """Files of a checkpoint that hold the state of the optimizer, or say where it is."""

    @property
    def divides(self) -> tuple[bool, bool]:
        """Whether the processes divide among them (gradients and optimizer state, weights)."""
        return False, False

    @property
    def machines(self) -> int:
        """How many machines take part."""
        return 1

    @property
    def alone(self) -> bool:
        """Whether it starts one process on any machine."""
        return True

    def arguments(self) -> dict[str, Any]:
        """Return the fields of transformers' TrainingArguments that choose and set the engine."""
        return {}

    def count(self, devices: int) -> int:
        """Return the processes of one machine that has so many devices for the run."""
        return 1

    def crew(self, devices: int) -> dict[str, Any]:
        """Return what the supervisor is told of the processes to start: the fields of crew.Plan."""
        return {}

    def check(self, device: str) -> None:
        """Raise InputError for what this machine lacks; device: "cpu", "cuda" or "mps"."""
        from core.models.packages import check_here

        if self.package:
            check_here(self.package, "launcher")

    def against(self, run: Run) -> Against | None:
        """Return what stands against the other settings of a run; None where nothing does."""
        return ("launcher.one", "hardware.devices") if len(run.hardware.devices) > 1 else None


class Several(Launcher):
    """Processes that learn together, each on a device of its own."""

    wrapper: ClassVar[str] = "DistributedDataParallel"
    processes: int = knob(0, ge=0, le=1024)
    """Processes per machine
    How many learn together on each machine, each with its own batches. 0 takes one for each GPU, and one on a CPU."""
    nodes: int = knob(1, ge=1, le=1024, expert=True)
    """Machines
    How many machines take part, each with as many processes. They share the folder of the run."""
    endpoint: str = knob("", max_length=200, expert=True)
    """Meeting point
    Address of the first machine and a free port on it, where all of them meet: 10.0.0.1:29500."""

    @property
    def machines(self) -> int:
        return self.nodes

    @property
    def alone(self) -> bool:
        return self.processes == self.nodes == 1

    def count(self, devices: int) -> int:
        return self.processes or max(devices, 1)

    def crew(self, devices: int) -> dict[str, Any]:
        processes, divides = self.count(devices), any(self.divides)
        return {"processes": processes, "nodes": self.nodes, "endpoint": self.endpoint, "divides": divides}

    def against(self, run: Run) -> Against | None:
        devices = run.hardware.devices
        if any(self.divides) and (run.stage.heads or run.stage.draws):
            return "launcher.stage", "stage"
        if run.hardware.device == "mps":
            return "launcher.mps", "launcher"
        if self.processes and devices and len(devices) != self.processes:
            return "launcher.count", f"launcher.{self.kind}.processes"
        if self.nodes > 1 and run.hardware.cluster:
            return "cluster.nodes", f"launcher.{self.kind}.nodes"
        if (self.nodes > 1 or self.endpoint) and not ENDPOINT.fullmatch(self.endpoint):
            return "launcher.endpoint", f"launcher.{self.kind}.endpoint"
        return None

    def against_division(self, run: Run) -> Against | None:
        """Return what stands against weights or states of which each process holds a part only."""
        if run.training.offload_activations:
            return "launcher.activations", "training.offload_activations"
        if run.model.precision == "pure_bf16":
            return "launcher.pure", "model.precision"
        if run.optimizer.kind != "adamw":
            return "launcher.optimizer", "optimizer"
        if run.watching.best or run.watching.samples:
            return "launcher.watching", "watching.best" if run.watching.best else "watching.samples"
        return None
