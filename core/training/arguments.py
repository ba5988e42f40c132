"""Our settings as transformers' TrainingArguments."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from core.config import Run
from core.models.device import compute_dtype, pick_device
from core.sections import Training

EVALUATIONS, SAVES = 10, 5
"""In a run, where the settings leave it to us."""


def total_steps(rows: int, training: Training) -> int:
    """Return how many optimizer steps a run over so many rows has: the step limit, else what the epochs make."""
    a_epoch = math.ceil(math.ceil(rows / training.batch_size) / training.accumulation)
    return training.max_steps or math.ceil(training.epochs * a_epoch)


def every(setting: int, total: int, times: int) -> int:
    """Return the steps between events: the setting, or what makes so many of them in a run; at most the whole run."""
    return min(setting or math.ceil(total / times), total)


def arguments(run: Run, total: int, *, evaluates: bool, pads: bool, folder: Path) -> TrainingArguments:
    """Return the arguments of a run of `total` steps; `folder` is where Trainer writes its checkpoints."""
    training = run.training
    device = pick_device(run.hardware)
    dtype = compute_dtype(run.model, device)
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=total,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        lr_scheduler_type=training.schedule,
        warmup_steps=math.ceil(total * training.warmup),
        max_grad_norm=training.clip,
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        activation_checkpointing=training.gradient_checkpointing,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every(training.eval_every, total, EVALUATIONS),
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=every(run.saving.every, total, SAVES),
        # each step, so that no broken loss hides in a mean; Watch thins out what it reports
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding" if pads else "all",
        seed=training.seed,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        # on a CPU alone: it would silently turn sharded training on a GPU into plain DDP
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False},  # it would cut the bounds of rows laid end to end
        disable_tqdm=True,
        report_to="none",
        **run.optimizer.arguments(),
    )
    # one process drives one device: with several GPUs in sight Trainer would wrap the model in DataParallel
    made._n_gpu = min(made.n_gpu, 1)
    return made
