"""Merge an adapter into its base, write the whole model, read it back and compare.

Everything is computed in fp32, and the weights are rounded to the format of the file before the last comparison: so a
difference is a fault, never the price of rounding, and the tolerance can be tight.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core import bases
from core.config import Export
from core.errors import InputError, Stopped
from core.export.card import exported
from core.export.target import check_base, target
from core.models import bits, copies, damage, foreign, rope, value_head
from core.models.adapters import load_adapter, tokenizer_of
from core.models.device import DTYPES
from core.models.inspect import inspect
from core.models.loading import load, load_model, model_folder
from core.models.packed import SHARED
from core.models.senses import keep
from core.models.vocabulary import embedding_rows
from core.sections import Hardware, Model
from core.workspace import Context, tuned

TOLERANCE = 1e-3
"""Largest difference of logits allowed, as a share of the largest logit."""
PROBE_ROWS, PROBE_TOKENS, PROBE_SEED = 4, 32, 0
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
FILE_TOKEN = re.compile(r"(image|vision|video|audio)\w*_token_(id|index)$|^(image|video|audio)_token$")
"""Names in a config under which tokens stand for files."""
SPARE_BYTES = 64 << 20
"""For the tokenizer and what the file system itself takes."""


@dataclass(frozen=True)
class Source:
    """What is exported: an adapter and its base, or a whole model (adapter is None)."""

    model: Model
    adapter: Path | None
    dtype: torch.dtype
    """Number format of the file: as chosen in the settings, else that of the stored weights."""
    bytes: int
    """The file will have at least so many; 0 where modules share weights, which files may hold once or for each."""


def export(job: Export, context: Context) -> dict[str, Any]:
    """Write the merged model; return {"folder", "difference", "rounding", "largest", "parameters", "bytes"}.

    difference: largest |logit now - logit after reading the file back|; rounding: what merging and the number format of
    the file changed. Raises InputError, also when they differ (export.differs), and Stopped; the target is then as it
    was.
    """
    final = target(job.folder or str(context.folder / "model"), context.workspace)
    source = _source(job, context)
    _check_space(final, source.bytes)
    aside = final.with_name(f".{final.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        metrics = _write_and_compare(job, source, aside, context)
        os.replace(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    context.events.write("saved", what="model", path=str(final))
    return {"folder": str(final), **metrics}


def _write_and_compare(job: Export, source: Source, aside: Path, context: Context) -> dict[str, Any]:
    """Do the export into an empty folder."""
    _phase(context, "load_model", model=source.model.path)
    exact = source.model.model_copy(update={"precision": "fp32"})
    model, tokenizer = load(exact, context.workspace, job.hardware)
    if source.adapter:
        tokenizer = tokenizer_of(source.adapter, model, tokenizer, "source")
    head = _head(source.adapter or Path(source.model.path), model)
    probe_B_T = _probe(model)
    _phase(context, "merge")
    model, before = _merge(model, source.adapter, probe_B_T)
    _compare(before, logits(model, probe_B_T), "merge")
    parameters = model.num_parameters()
    _check_space(aside, parameters * source.dtype.itemsize)
    _round(model, source.dtype)
    merged = logits(model, probe_B_T)
    _phase(context, "write")
    _write(model, tokenizer, source.dtype, aside, job.shard_gb)
    if head:
        value_head.save(head, aside)
    code = foreign.keep(model, aside)
    del model
    gc.collect()  # two copies of a large model may not fit beside each other
    _phase(context, "check")
    difference = _compare(merged, _read_back(aside, job.hardware, probe_B_T), "write")
    metrics = {
        "difference": difference,
        "rounding": (merged - before).abs().max().item(),
        "largest": before.abs().max().item(),
        "parameters": parameters,
        "bytes": sum(file.stat().st_size for file in aside.glob("*.safetensors")),
    }
    told = exported(job, source.adapter, source.model.path, metrics, sees=inspect(aside).senses, code=code)
    (aside / "README.md").write_text(told, encoding="utf-8")
    return metrics


@torch.inference_mode()
def logits(model: PreTrainedModel, ids_B_T: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, T, V) in fp32 on the CPU."""
    found = model(input_ids=ids_B_T.to(model.device), use_cache=False).logits.float().cpu()
    damage.check(model, found)
    return found


def _source(job: Export, context: Context) -> Source:
    """Return what is exported. Raises InputError at source or model.path."""
    if not job.source:
        raise InputError("config.missing", "source")
    folder = tuned(job.source, context.workspace, "source")
    if (folder / "config.json").exists():
        model, adapter = job.model.at(str(folder)), None
        facts = inspect(folder, "source")
    else:
        model, adapter = job.model, folder
        facts = inspect(model_folder(model, context.workspace))
        check_base(facts.packed)
        bases.warn_of([job.source], model, context, "source")
    dtype = DTYPES.get(job.model.precision) or STORED.get(facts.dtype, torch.float32)
    return Source(model, adapter, dtype, 0 if facts.model_type in SHARED else facts.parameters * dtype.itemsize)


def _head(folder: Path, model: PreTrainedModel) -> value_head.ValueHead | None:
    """Return the value head beside what is exported, if there is one: without it, a reward model gives no number."""
    return value_head.load(model, folder, "source") if any(folder.glob(f"{value_head.NAME}.*")) else None


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < needed + SPARE_BYTES:
        raise InputError("disk.full", "folder", path=str(folder.parent), free=f"{free / 1e9:.1f} GB",
                         needed=f"{(needed + SPARE_BYTES) / 1e9:.1f} GB")  # fmt: skip


def _phase(context: Context, phase: str, **params: Any) -> None:
    if context.stop.is_set():
        raise Stopped("run.stopped")
    context.events.write("phase", phase=phase, params=params)


def _probe(model: PreTrainedModel) -> torch.Tensor:
    """Return token ids (B, T) from all over the vocabulary, always the same for the same model.

    None that stands for an image or a sound: without it, such a token means nothing to a model that sees or hears.
    """
    length = min(PROBE_TOKENS, rope.context(model.config))
    seeded = torch.Generator().manual_seed(PROBE_SEED)
    ids_B_T = torch.randint(embedding_rows(model), (PROBE_ROWS, length), generator=seeded)
    told = model.config.to_dict()
    files = [told[name] for name in told if FILE_TOKEN.search(name) and isinstance(told[name], int)]
    return torch.where(torch.isin(ids_B_T, torch.tensor(files, dtype=torch.long)), 0, ids_B_T)


def _merge(
    model: PreTrainedModel, adapter: Path | None, probe_B_T: torch.Tensor
) -> tuple[PreTrainedModel, torch.Tensor]:
    """Return (model with the adapter in its weights, logits of the probe while the adapter was still beside them)."""
    if adapter is None:
        return model, logits(model, probe_B_T)
    model = bits.unpacked(model)
    wrapped = load_adapter(model, adapter, "tuned", "source")
    config = wrapped.peft_config["tuned"]
    if isinstance(config, LoraConfig) and config.lora_bias:
        raise InputError("export.bias", "source", folder=str(adapter))
    _untie(model)
    before = logits(model, probe_B_T)
    return copies.merged(wrapped), before


def _untie(model: PreTrainedModel) -> None:
    """Give the head weights of its own where the adapter sits on one of two tied layers: merging would change both.

    Layers that share theirs get some of their own, too: one word in the config is for all.
    """
    head = model.get_output_embeddings()
    ends = model.get_input_embeddings(), head
    touched = [
        isinstance(end, BaseTunerLayer | AuxiliaryTrainingWrapper) and not isinstance(end, TrainableTokensWrapper)
        for end in ends
    ]  # rows that learn are put into both of two tied layers
    configs = model.config, model.config.get_text_config()  # of several parts: either or both may say it
    tied = [config for config in configs if getattr(config, "tie_word_embeddings", False)]
    if not tied or not any(touched) or head is None:
        return
    for config in tied:
        config.tie_word_embeddings = False
    copies.part(model)


def _round(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give every weight a value that the file can hold, in place and still in fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, folder: Path, shard_gb: float
) -> None:
    """Write weights, config, generation config, tokenizer and chat template. The model is in `dtype` afterwards."""
    cast(torch.nn.Module, model).to(dtype)
    model.save_pretrained(folder, max_shard_size=int(shard_gb * 1e9))
    tokenizer.save_pretrained(folder)
    keep(Path(str(model.name_or_path)), folder)


def _read_back(folder: Path, hardware: Hardware, probe_B_T: torch.Tensor) -> torch.Tensor:
    model = load_model(Model(path=str(folder), precision="fp32"), folder, hardware)
    return logits(model, probe_B_T)


def _compare(wanted: torch.Tensor, found: torch.Tensor, step: str) -> float:
    """Return the largest difference; raise InputError when it is above the tolerance or not a number."""
    difference = (wanted - found).abs().max().item()
    limit = TOLERANCE * max(1.0, wanted.abs().max().item())
    if not difference <= limit:
        raise InputError("export.differs", "source", step=step, difference=f"{difference:.3g}", limit=f"{limit:.3g}")
    return difference
