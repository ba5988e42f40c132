"""`tuneboard doctor`: can this machine train? Every finding says what is so and, where something is wrong, the way out.

Heavy libraries are asked in processes of their own: one that hangs or crashes is a finding, not the end of the doctor.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from app import fit, i18n
from app.cli_speak import Answer, console, language, out, say
from app.pace import seconds_an_epoch
from core.config import Run
from core.forecast import forecast, unforeseen, words
from core.known import about, suits
from core.preflight import check_model, check_packages
from core.runs import environment
from core.sections import DEMO_MODEL
from core.workspace import BUNDLED

MARKS = {"good": "✓", "note": "·", "poor": "!", "bad": "✗"}
NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "peft", "trl", "accelerate", "datasets", "sacrebleu",
          "rouge-score", "gradio", "fastapi", "pydantic", "PyYAML", "psutil", "typer", "rich", "babel")  # fmt: skip
OPTIONAL = {"bitsandbytes": "", "vllm": "vllm", "deepspeed": "deepspeed", "ray": "ray", "gguf": "gguf"}
"""Packages that only some wishes need, with the extra that brings each."""
PROBE_SECONDS = 120
LITTLE_MEMORY, LITTLE_DISK = 2 << 30, 5 << 30
DEVICES = """
import json, torch
found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__,
    "devices": [f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in found],
    "mps": torch.backends.mps.is_available(),
    "works": float(torch.ones(2, 2, device="cuda" if found else "cpu").sum()) == 4.0,
}))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it is, what was found, what to do about it."""

    name: str
    grade: str
    """good, note (absent, but not needed), poor (works, with a catch) or bad (training can't run)."""
    text: str
    way_out: str = ""


def examine(workspace: Path, answer: Answer) -> None:
    """Look at everything; exit status 0 if training can run here."""
    findings = []
    with console().status(say("doctor.looking")):
        for finding in look(workspace):
            findings.append(finding)
            if not answer.as_json:
                out(f"{MARKS[finding.grade]} {finding.name}: {finding.text}")
                if finding.way_out:
                    out(f"    {finding.way_out}")
    able = all(finding.grade != "bad" for finding in findings)
    answer.fields |= {"able": able, "findings": [asdict(finding) for finding in findings]}
    answer.status = 0 if able else 1
    answer.show("\n" + say("doctor.able" if able else "doctor.unable"))


def foresee(run: Run, workspace: Path, answer: Answer) -> None:
    """Tell whether a run will fit into memory, and what makes it fit; exit status 0 if it does."""
    check_model(run, workspace)
    check_packages(run)
    known, better, found = about(run.model.path, workspace), suits(run, workspace), forecast(run, workspace)
    if not found:
        raise unforeseen(run, workspace)
    epoch = seconds_an_epoch(run, workspace)
    told = [" · ".join(fit.model_facts(language(), known)), *fit.lines(language(), run, found, epoch)]
    told += [f"    {say('doctor.memory_part', name=name, size=size)}" for name, size in fit.parts(language(), found)]
    told += [fit.trained(language(), found)]
    told += [f"    {kind}: {count}" for kind, count in fit.modules(language(), found)]
    told += [f"→ {fit.fix_told(language(), fix)}\n    {' '.join(words(fix.patch))}" for fix in found.fixes]
    if better:
        told.append(f"→ {fit.advice_told(language(), better)}\n    {' '.join(words(better))}")
    fixes = [{"change": dict(fix.patch), "peak": fix.plan.peak} for fix in found.fixes]
    planned = asdict(found.plan) | {"peak": found.plan.peak, "trainable": found.plan.trainable}
    answer.fields |= {
        "model": asdict(known) if known else None, "suits": better, "verdict": found.verdict, "plan": planned,
        "room": asdict(found.room), "fixes": fixes, "seconds_an_epoch": epoch,
    }  # fmt: skip
    answer.status = 1 if found.verdict == "too_large" else 0
    answer.show("\n".join(told))


def look(workspace: Path) -> Iterator[Finding]:
    """Yield one finding after the other, the quick ones first."""
    yield _python()
    yield from _packages()
    yield _memory()
    yield _disk(workspace)
    yield _demo()
    yield from _torch()
    for name, extra in OPTIONAL.items():
        yield _optional(name, extra)


def _finding(topic: str, grade: str, **params: Any) -> Finding:
    """Return a finding; ui.cli.doctor.<topic> has its name, its <grade> and, where that is no good, <grade>_way."""
    way = say(f"doctor.{topic}.{grade}_way", **params) if grade in ("poor", "bad") else ""
    return Finding(say(f"doctor.{topic}.name", **params), grade, say(f"doctor.{topic}.{grade}", **params), way)


def _python() -> Finding:
    grade = "good" if sys.version_info >= (3, 11) else "bad"
    return _finding("python", grade, version=sys.version.split()[0], path=sys.executable)


def _packages() -> Iterator[Finding]:
    """Yield what is missing, what is not the tested version, or one word for all."""
    tested, missing, other = constraints(), [], []
    for name in NEEDED:
        found = installed(name)
        if found is None:
            missing.append(name)
        elif found.partition("+")[0] != tested.get(name.lower().replace("_", "-"), found.partition("+")[0]):
            other.append(f"{name} {found} ({tested[name.lower().replace('_', '-')]})")
    if missing:
        yield _finding("packages", "bad", names=", ".join(missing))
    if other:
        yield _finding("packages", "poor", names=", ".join(other))
    if not missing and not other:
        yield _finding("packages", "good", count=len(NEEDED))


def constraints() -> dict[str, str]:
    """Return the tested version of every package by its name; {} where the file was not installed."""
    path = BUNDLED / "constraints.txt"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return {name.lower().replace("_", "-"): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}


def installed(name: str) -> str | None:
    """Return the installed version of a package, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    sizes = {"free": _size(memory.available), "total": _size(memory.total), "cores": os.cpu_count()}
    return _finding("memory", "poor" if memory.available < LITTLE_MEMORY else "good", **sizes)


def _disk(workspace: Path) -> Finding:
    """Judge the disk that runs are written to, at the nearest folder that exists."""
    place = next(path for path in (workspace / "runs", workspace, *workspace.parents) if path.exists())
    free = psutil.disk_usage(str(place)).free
    grade = "bad" if not os.access(place, os.W_OK) else "poor" if free < LITTLE_DISK else "good"
    return _finding("disk", grade, path=str(workspace), free=_size(free))


def _demo() -> Finding:
    whole = (BUNDLED / DEMO_MODEL / "model.safetensors").is_file()
    return _finding("demo", "good" if whole else "poor", path=str(BUNDLED / DEMO_MODEL))


def _torch() -> Iterator[Finding]:
    if installed("torch") is None:
        return  # said already, among the packages
    said, error = probe(DEVICES)
    if error:
        yield _finding("torch", "bad", what=error)
        return
    facts = json.loads(said)
    yield _finding("torch", "good" if facts["works"] else "bad", version=facts["torch"], what="1 + 1 + 1 + 1")
    devices = facts["devices"] or (["MPS"] if facts["mps"] else [])
    yield _finding("device", "good" if devices else "note", names="; ".join(devices))


def _optional(name: str, extra: str) -> Finding:
    version = installed(name)
    wanted = f"pip install 'tuneboard[{extra}]'" if extra else f"pip install {name}"
    if version is None:
        return _finding("optional", "note", name=name, command=wanted)
    _, error = probe(f"import {name}")
    return _finding("optional", "poor" if error else "good", name=name, version=version, what=error, command=wanted)


def probe(code: str) -> tuple[str, str]:
    """Run Python code in a process of its own; return (its last line of output, what went wrong or "")."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_SECONDS, env=environment()
        )
    except subprocess.TimeoutExpired:
        return "", say("doctor.slow", seconds=PROBE_SECONDS)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [""]
    return (lines[-1], "") if done.returncode == 0 else ("", lines[-1][:300] or f"exit {done.returncode}")


def _size(count: float) -> str:
    return i18n.size(language(), count)
