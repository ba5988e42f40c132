"""Our settings as transformers' TrainingArguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from core.config import Run
from core.models.device import pick_device, training_dtype
from core.sections import Training

EVALUATIONS, SAVES = 10, 5
"""In a run, where the settings leave it to us."""


def batches(rows: int, size: int, processes: int = 1, *, even: bool = False) -> int:
    """Return how many batches of `size` rows each process has in an epoch.

    even: rows too few for all processes are left out, as single ones always are.
    """
    return math.ceil(rows // processes / size) if even or size == 1 else math.ceil(rows / (size * processes))


def total_steps(rows: int, training: Training, processes: int = 1, *, even: bool = False) -> int:
    """Return how many optimizer steps a run over so many rows has: the step limit, else what the epochs make."""
    a_epoch = math.ceil(batches(rows, training.batch_size, processes, even=even) / training.accumulation)
    return training.max_steps or math.ceil(training.epochs * a_epoch)


def every(setting: int, total: int, times: int) -> int:
    """Return the steps between events: the setting, or what makes so many of them in a run; at most the whole run."""
    return min(setting or math.ceil(total / times), total)


def arguments(
    run: Run, total: int, *, evaluates: bool, pads: bool, weights: int, folder: Path, resumed: bool = False
) -> TrainingArguments:
    """Return the arguments of a run of `total` steps.

    weights: how many are not held in few bits. folder: where Trainer writes its checkpoints. resumed: whether it goes
    on from one.
    """
    training = run.training
    device = pick_device(run.hardware)
    dtype = torch.float32 if _on_cpus(run, device) else training_dtype(run.model, device, weights)
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=total,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        lr_scheduler_type=_schedule(run),
        # the first step of a warm-up is one of 0: alone, it would learn nothing
        warmup_steps=math.ceil(total * training.warmup) if total > 1 else 0,
        max_grad_norm=training.clip,
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        activation_checkpointing=training.gradient_checkpointing,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every(training.eval_every, total, EVALUATIONS),
        eval_on_start=evaluates and run.watching.at_start and not resumed,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=every(run.saving.every, total, SAVES),
        # each step, so that no broken loss hides in a mean; Watch thins out what it reports
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding" if pads else "all",
        seed=training.seed,
        bf16=dtype is torch.bfloat16 and run.model.precision != "pure_bf16",  # nothing is mixed then
        fp16=dtype is torch.float16,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        **run.optimizer.arguments(),
        **_engine(run, device),
    )
    # one process drives one device: with several GPUs in sight Trainer would wrap the model in DataParallel
    made._n_gpu = min(made.n_gpu, 1)
    return made


def _schedule(run: Run) -> str:
    """Return the schedule by the name that transformers has for it; what wants it constant warms up by itself."""
    warms = run.training.schedule == "constant" and "constant" not in run.optimizer.wants
    return "constant_with_warmup" if warms else run.training.schedule


def _on_cpus(run: Run, device: torch.device) -> bool:
    """Return whether processes divide a model without GPUs, which transformers takes in fp32 alone."""
    return any(run.launcher.divides) and device.type == "cpu"


def _engine(run: Run, device: torch.device) -> dict[str, Any]:
    """Return the arguments that say in how many processes the model learns, and what they divide."""
    return {
        # it would silently turn divided training into plain DDP
        "use_cpu": device.type == "cpu" and not _on_cpus(run, device),
        # dispatched batches would lose the bounds of rows laid end to end
        "accelerator_config": {"dispatch_batches": False, "use_configured_state": any(run.launcher.divides)},
        # the head of a reward model, experts that no token chose; checkpointing, not re-entrant, is no hindrance
        "ddp_find_unused_parameters": True,
        **run.launcher.arguments(),
    }
