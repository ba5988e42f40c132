"""What a finished run shows: metrics.json and loss.png in its folder."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from core.events import RunState


def write(folder: Path, state: RunState) -> dict[str, float]:
    """Write both files; return the metrics: loss, eval_loss, step, epoch, tokens."""
    metrics = {name: state.last[name] for name in ("loss", "step", "epoch", "tokens")}
    if state.evals:
        metrics["eval_loss"] = state.evals["loss"]
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False), encoding="utf-8")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for name, opacity, marker in (("loss", 0.35, ""), ("smooth", 1, ""), ("eval", 1, "o")):
        if bins := state.curves[name].bins:
            axes.plot([b[0] for b in bins], [b[1] for b in bins], label=name, alpha=opacity, marker=marker)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=110)
    return metrics
