"""What DeepSpeed and FSDP2 need before a model is given to them, and how it is put together again to be saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from peft import PeftModel
from torch.serialization import add_safe_globals

from core.launchers.deepspeed import DeepSpeed
from core.launchers.fsdp2 import Fsdp2
from core.models import moe
from core.models.device import pick_device
from core.models.packages import require
from core.run import Run

SHARED_MEMORY = "deepspeed_shm_comm"
"""A faster way between processes on a CPU, which DeepSpeed would compile first; killed meanwhile, it leaves a lock that
every later run waits for without an end."""


def prepare(run: Run, model: Any) -> None:
    """Make ready what divides the model. Raises InputError where it can't be done here."""
    launcher, device = run.launcher, pick_device(run.hardware)
    launcher.check(device.type)
    if not any(launcher.divides):
        return
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=device.type == "cpu")
    if isinstance(launcher, DeepSpeed):
        require(launcher.package, "launcher")
        import deepspeed
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        # what stands in its checkpoints beside tensors and plain values; nothing else is unpacked
        add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])
        if device.type == "cpu":
            deepspeed.ops.__compatible_ops__[SHARED_MEMORY] = False
        # transformers leaves a CPU to each process alone unless it is told
        state.distributed_type = DistributedType.DEEPSPEED
        if launcher.zero == 3 and (leaves := moe.leaves(model)):
            deepspeed.utils.set_z3_leaf_modules(model, leaves)


@contextmanager
def whole(run: Run, model: Any) -> Iterator[None]:
    """Give a context in which the first process can save the model; all must enter it."""
    launcher = run.launcher
    if isinstance(launcher, DeepSpeed) and launcher.zero == 3:
        import deepspeed

        adapted = isinstance(model, PeftModel)  # of which the adapter alone is saved
        with deepspeed.zero.GatheredParameters([p for p in model.parameters() if p.requires_grad or not adapted]):
            yield
    elif isinstance(launcher, Fsdp2):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        model.save_pretrained = partial(model.save_pretrained, state_dict=weights)
        yield
    else:
        yield
