"""What a finished run shows: metrics.json and loss.png in its folder, a card beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from core.config import Run, load
from core.events import RunState
from core.export.card import trained
from core.models.inspect import inspect
from core.models.loading import model_folder
from core.series import Series

ACROSS = 3
"""Small curves side by side."""


def write(folder: Path, state: RunState) -> dict[str, float]:
    """Write the files; return the metrics: loss, step, epoch, tokens, what a stage measured as it learned.

    What was measured on held-out rows comes as eval_..., eval_SET_... where a set has a name. Where the saved weights
    are those of an earlier step, `saved_step` tells it, and what was measured on held-out rows is from there.
    """
    metrics: dict[str, float] = {name: state.last[name] for name in ("loss", "step", "epoch", "tokens")}
    metrics |= state.last.get("metrics", {})
    saved = state.saved[-1] if state.saved else {}
    step = saved.get("step", metrics["step"])
    if step != metrics["step"]:
        metrics["saved_step"] = step
    metrics |= {name: curve.until(step) for name, curve in _held_out(state).items()}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False), encoding="utf-8")
    draw(state).savefig(folder / "loss.png", dpi=110)
    if saved.get("what") in ("adapter", "model"):
        run = load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
        assert isinstance(run, Run)
        sees = inspect(model_folder(run.model, folder.parents[1])).senses
        told = trained(run, metrics, whole=saved["what"] == "model", sees=sees)
        (folder / saved["path"] / "README.md").write_text(told, encoding="utf-8")
    return metrics


def _held_out(state: RunState) -> dict[str, Series]:
    """Return the curves of held-out rows by what their figures are called: the losses first."""
    found = {(name, "loss"): curve for name, curve in state.eval_curves.items()}
    for name, curve in state.metric_curves.items():
        if name.startswith("eval "):  # eval SET METRIC; of the first set eval METRIC
            named, _, metric = name.removeprefix("eval ").rpartition(" ")
            found[named or state.evals.get("set", ""), metric] = curve
    return {"_".join(filter(None, ("eval", *key))): curve for key, curve in found.items()}


def draw(state: RunState) -> Figure:
    """Return the losses as one large drawing, and what else was measured as small ones below."""
    others = state.metric_curves
    rows = -(-len(others) // ACROSS)
    # where all is one drawing there is nothing to arrange, which would draw it twice
    figure = Figure(figsize=(8, 4.5 + 2 * rows), layout="constrained" if others else None)
    grid = figure.add_gridspec(1 + rows, ACROSS, height_ratios=[4.5, *[2.0] * rows])
    axes = figure.add_subplot(grid[0, :], xlabel="step", ylabel="loss")
    _line(axes, state.curves["loss"].bins, label="loss", alpha=0.35)
    _line(axes, state.curves["smooth"].bins, label="smooth")
    for name, curve in state.eval_curves.items():
        _line(axes, curve.bins, label=f"eval {name}".strip(), marker="o")
    axes.legend()
    axes.grid(alpha=0.3)
    for place, (name, curve) in enumerate(others.items()):
        small = figure.add_subplot(grid[1 + place // ACROSS, place % ACROSS], title=name)
        _line(small, curve.bins)
        small.grid(alpha=0.3)
    return figure


def _line(axes: Any, bins: list[list[float]], **style: Any) -> None:
    if bins:
        axes.plot([b[0] for b in bins], [b[1] for b in bins], **style)
