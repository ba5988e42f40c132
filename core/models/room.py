"""How much memory the device of a job has, asked without loading torch: the machine's, or that of its GPUs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from core.sections import Hardware

QUERY = ["--query-gpu=utilization.gpu,memory.used,memory.total,temperature.gpu", "--format=csv,noheader,nounits"]
MIB = 2**20
WORTHWHILE = 5_000_000
"""Weights of the smallest model that bf16 makes faster on a CPU: below it, converting costs more than it saves."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """A device and its memory in bytes."""

    device: str
    """cpu, cuda or mps."""
    free: int
    total: int
    bf16: bool = False
    """Whether training multiplies bf16 there when the precision is left to us."""


def room(hardware: Hardware) -> Room:
    """Return the room on the device that the settings mean; auto is the first there is of cuda, mps, cpu.

    Of several GPUs the one with the most free memory counts, of those that are named the one with the least: all of
    them are used. A GPU that can't be asked about is as good as none.
    """
    if hardware.device in ("auto", "cuda") and (found := gpus()):
        rooms = [((total - used) * MIB, total * MIB) for _, used, total, _ in found]
        named = [rooms[number] for number in hardware.devices if number < len(rooms)]
        free, total = min(named) if named else max(rooms)
        return Room("cuda", int(free), int(total), bf16=True)
    apple = hardware.device in ("auto", "mps") and (platform.system(), platform.machine()) == ("Darwin", "arm64")
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    if limit := _limit():  # of a container
        free, total = min(free, limit - _used()), min(total, limit)
    return Room("mps" if apple else "cpu", max(free, 0), total, bf16=not apple and native_bf16())


def devices(hardware: Hardware) -> list[str]:
    """Return the GPUs that a job uses, as CUDA_VISIBLE_DEVICES names them; none where it runs on something else.

    Where that variable is set already, the numbers of the settings count within it.
    """
    if hardware.device not in ("auto", "cuda"):
        return []
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = [str(number) for number in range(len(gpus()))] if told is None else [n for n in told.split(",") if n.strip()]
    return [seen[number] for number in hardware.devices if number < len(seen)] if hardware.devices else seen


def chosen(hardware: Hardware) -> dict[str, str]:
    """Return the environment that shows a job the GPUs it shall use, and no others."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices(hardware))} if hardware.devices else {}


@cache
def native_bf16() -> bool:
    """Return whether this CPU multiplies bf16 itself, by what Linux says of it."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_tile" in flags


def gpus() -> list[tuple[float, float, float, float]]:
    """Return (use in percent, MiB used, MiB in all, degrees Celsius) of each GPU; none where no driver answers."""
    smi = _smi()
    if not smi:
        return []
    try:
        done = subprocess.run([smi, *QUERY], capture_output=True, text=True, timeout=2, check=True)
        rows = [[_figure(cell) for cell in line.split(",")] for line in done.stdout.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [(row[0], row[1], row[2], row[3]) for row in rows if len(row) == 4 and row[2]]


def _figure(cell: str) -> float:
    """Return the number in a cell; 0 where the device does not tell ([N/A], as for a part of a GPU)."""
    return 0.0 if "[" in cell else float(cell)


@cache
def _smi() -> str | None:
    return shutil.which("nvidia-smi")


def _limit() -> int:
    """Return the bytes that the control group of this process may use; 0 where nothing limits it."""
    text = _read("memory.max")
    return int(text) if text.isdigit() else 0


def _used() -> int:
    """Return the bytes of the group that can't be given back: files that are held beside them can."""
    text, held = _read("memory.current"), _read("memory.stat").partition("inactive_file ")[2].split("\n")[0]
    return int(text) - (int(held) if held.isdigit() else 0) if text.isdigit() else 0


def _read(name: str) -> str:
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""
