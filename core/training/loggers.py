"""Trackers that get the curves as well, through the callbacks of transformers: offline and into the run folder.

Whoever wants them elsewhere says so by the environment variables of the tracker, which win; keys stand nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from core.config import Run
from core.models.packages import require

PROJECT = "tuneboard"


def settings(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return the environment variables that keep each tracker in a run folder, where `environment` says nothing."""
    place = folder / "trackers"
    offline = {
        "WANDB_MODE": "online" if "WANDB_API_KEY" in environment else "offline",
        "SWANLAB_MODE": "cloud" if "SWANLAB_API_KEY" in environment else "offline",
    }
    ours = {
        "TENSORBOARD_LOGGING_DIR": str(place / "tensorboard"),
        "WANDB_DIR": str(place), "WANDB_PROJECT": PROJECT, "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "TRACKIO_DIR": str(place / "trackio"),
        "SWANLAB_LOG_DIR": str(place / "swanlab"),
    }  # fmt: skip
    return {name: value for name, value in (offline | ours).items() if name not in environment}


class Reports(TrainerCallback):
    """Hands on to trackers what is reported."""

    def __init__(self, run: Run, folder: Path) -> None:
        """Raises InputError where the package of a tracker is missing."""
        if run.watching.report_to:
            (folder / "trackers").mkdir(exist_ok=True)
            os.environ.update(settings(folder, dict(os.environ)))  # some read it when they are imported
        for name in run.watching.report_to:
            require(name, "watching.report_to")
        self.trackers: list[Any] = [made() for made in get_reporting_integration_callbacks(run.watching.report_to)]
        self.name, self.every = folder.name, run.training.log_every
        self.begins = "swanlab" in run.watching.report_to
        """Asked whether it has begun, swanlab fails instead of saying no (0.10, with transformers 5.23)."""

    def on_train_begin(self, args: TrainingArguments, *given: Any, **kwargs: Any) -> None:
        args.run_name, args.project = self.name, PROJECT
        if self.begins:
            import swanlab

            swanlab.init(project=PROJECT, experiment_name=self.name)
        for tracker in self.trackers:
            tracker.on_train_begin(args, *given, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if "loss" in given["logs"] and state.global_step % self.every:
            return
        for tracker in self.trackers:
            tracker.on_log(args, state, control, **given)

    def on_train_end(self, *given: Any, **kwargs: Any) -> None:
        for tracker in self.trackers:
            tracker.on_train_end(*given, **kwargs)
