"""Earlier adapters under a new one: put together, put into the weights, and written beside what is learned above them.

Adapters that only add products to weights add up: s1·B1·A1 + s2·B2·A2 is one product, of a rank that is the sum of
theirs. So what is saved in the end is one plain adapter over the base that the first of them was trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from core.errors import InputError
from core.files import aside
from core.models import copies, loftq
from core.models.adapters import load_adapter
from core.models.inspect import inspect_adapter
from core.models.jsons import read_json
from core.models.vocabulary import tables
from core.workspace import tuned

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PART, LEARNING = "part", "default"
PLACE = "tuner.lora.start"
NOT_ADDED = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias", "bias")
"""Settings of an adapter that does more than add products to weights."""

Products = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Name of A in the file -> A (R, I) and B (O, R), already scaled: what is added to the weight is B·A."""


def merged(model: PreTrainedModel, names: Sequence[str], run: Path) -> PreTrainedModel:
    """Return the model with adapters in its weights, in the order of their names (of runs, or folders).

    They are put together in a folder of the run, from where a resumed run takes them: they may be gone by then.
    Raises InputError at tuner.lora.start.
    """
    kept = run / "parts"
    if not kept.is_dir():
        products = [_products(model, tuned(name, run.parents[1], PLACE)) for name in names]
        with aside(kept) as writing:
            _write(_joined(products), writing, LoraConfig(task_type="CAUSAL_LM"), str(model.name_or_path))
    return copies.merged(load_adapter(model, kept, PART, PLACE))


def continued(model: PreTrainedModel, name: str, run: Path, *, above: bool) -> PreTrainedModel:
    """Return the model with an adapter that goes on learning; a copy for a resumed run is kept in a folder of the run.

    above: whether it stands above others. Raises InputError at tuner.lora.start.
    """
    kept = run / "continued"
    if not kept.is_dir():
        folder = tuned(name, run.parents[1], PLACE)
        _check(folder, NOT_ADDED if above else ("trainable_token_indices",))  # whose tokenizer is not that of the run
        with aside(kept) as writing:
            for file in (CONFIG, WEIGHTS, loftq.FILE):
                if (folder / file).is_file():
                    shutil.copyfile(folder / file, writing / file)
    if loftq.over_its_base(model, kept, PLACE):
        loftq.keep_beginning(kept, run / "beginning")
    wrapped: Any = copies.bind(load_adapter(model, kept, LEARNING, PLACE))
    config = wrapped.peft_config[LEARNING]
    config.inference_mode, config.base_model_name_or_path = False, str(model.name_or_path)
    wrapped.set_adapter(LEARNING)
    return wrapped


def join(adapter: Path, run: Path) -> None:
    """Rewrite the adapter that a run has saved so that it holds those that it was trained above, too."""
    config: Any = LoraConfig.from_pretrained(str(adapter))
    weights, parts = load_file(adapter / WEIGHTS), load_file(run / "parts" / WEIGHTS)
    others = {name: tensor for name, tensor in weights.items() if not _is_A(name) and not _is_A(_A_of(name))}
    joined = _joined([_read(parts, LoraConfig.from_pretrained(str(run / "parts"))), _read(weights, config)])
    _write(joined, adapter, config, config.base_model_name_or_path, others)


def _check(folder: Path, against: Sequence[str]) -> None:
    """Raise InputError for an adapter that is no LoRA, or has one of these settings."""
    if (folder / "config.json").exists():
        raise InputError("start.whole", PLACE, folder=str(folder))
    facts, config = inspect_adapter(folder, PLACE), read_json(folder / CONFIG, PLACE, "adapter.no_config")
    odd = [key for key in against if config.get(key) not in (None, False, "none", [], {})]
    if odd := odd + [facts.peft_type] * (facts.peft_type != "LORA"):
        raise InputError("start.not_lora", PLACE, folder=str(folder), what=odd[0])


def _products(model: PreTrainedModel, folder: Path) -> Products:
    """Return what an adapter adds to the model, which is then as it was; raise InputError for one that does more."""
    _check(folder, NOT_ADDED)
    load_adapter(model, folder, PART, PLACE).unload()  # which finds out whether it fits
    products = _read(load_file(folder / WEIGHTS), LoraConfig.from_pretrained(str(folder)))
    touched = {_module(name) for name in products}
    ends = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    tied = len(tables(model)) == 1 and touched & ends
    if tied or any("lora_embedding_" in name for name in products):
        raise InputError("start.not_lora", PLACE, folder=str(folder), what="embedding")
    return products


def _read(weights: dict[str, torch.Tensor], config: Any) -> Products:
    """Return the products in a file."""
    found = {}
    for name, tensor in weights.items():
        if _is_A(name):
            key = get_pattern_key(config.alpha_pattern.keys(), _module(name))
            alpha, rank = config.alpha_pattern.get(key, config.lora_alpha), len(tensor)
            scale = alpha / (rank**0.5 if config.use_rslora else rank)
            found[name] = tensor.float(), scale * weights[_B_of(name)].float()
    return found


def _joined(products: Sequence[Products]) -> Products:
    """Return the sum of products as one for each module."""
    names = dict.fromkeys(name for each in products for name in each)
    found = {name: [each[name] for each in products if name in each] for name in names}
    return {name: (torch.cat([A for A, _ in pairs], 0), torch.cat([B for _, B in pairs], 1))
            for name, pairs in found.items()}  # fmt: skip


def _write(
    products: Products, folder: Path, config: Any, base: str, others: dict[str, torch.Tensor] | None = None
) -> None:
    """Write products as an adapter of one rank, filled up with zeros: some servers know no other."""
    rank = max(len(A) for A, _ in products.values())
    tensors = dict(others or {})
    for name, (A, B) in products.items():
        tensors[name] = torch.nn.functional.pad(A, (0, 0, 0, rank - len(A))).contiguous()
        tensors[_B_of(name)] = torch.nn.functional.pad(B, (0, rank - len(A))).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.r = config.lora_alpha = rank
    config.use_rslora, config.rank_pattern, config.alpha_pattern = False, {}, {}
    config.target_modules = sorted({_module(name) for name in products})
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))


def _is_A(name: str) -> bool:
    return name.endswith((".lora_A.weight", ".lora_embedding_A"))


def _B_of(name: str) -> str:
    return name.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")


def _A_of(name: str) -> str:
    return name.replace(".lora_B.", ".lora_A.").replace(".lora_embedding_B", ".lora_embedding_A")


def _module(name: str) -> str:
    return name.removeprefix(PREFIX).removesuffix(".lora_A.weight").removesuffix(".lora_embedding_A")
