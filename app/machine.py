"""What this machine is busy with: CPU, memory and the GPUs that nvidia-smi sees; measured every two seconds at most."""

from __future__ import annotations

import threading
import time
from html import escape

import psutil

from app.i18n import number, size, tr
from core.models.room import MIB, gpus

SECONDS, GPU_SECONDS = 2.0, 5.0


class Machine:
    """The latest figures, shared by all viewers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at, self._gpu_at = 0.0, 0.0
        self.cpu, self.used, self.total = 0.0, 0, 0
        self.gpus: list[tuple[float, float, float, float]] = []
        """(use in percent, MiB used, MiB in all, degrees Celsius) of each GPU."""

    def told(self, language: str) -> str:
        """Return the line for the page."""
        with self._lock:
            self._measure(time.monotonic())
        used, total = size(language, self.used), size(language, self.total)
        parts = [tr(language, "ui.live.machine", cpu=number(language, round(self.cpu)), used=used, total=total)]
        for use, taken, whole, heat in self.gpus:
            shown = {"used": size(language, taken * MIB), "total": size(language, whole * MIB)}
            parts.append(
                tr(language, "ui.live.gpu", use=number(language, int(use)), heat=number(language, int(heat)), **shown)
            )
        return f'<p class="tb-machine">{escape(" · ".join(parts))}</p>'

    def _measure(self, now: float) -> None:
        if now - self._at > SECONDS:
            memory = psutil.virtual_memory()
            self._at, self.cpu = now, psutil.cpu_percent(None)
            self.used, self.total = memory.total - memory.available, memory.total
        if now - self._gpu_at > GPU_SECONDS:
            self._gpu_at = now
            self.gpus = gpus()
