"""What a folder with a model or an adapter holds, read from its JSON files and safetensors headers alone.

Cold: neither torch nor transformers; milliseconds for a model of any size. What can be refused without loading a weight
is refused here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.models import consent
from core.models.adapter_check import check_config, check_whole
from core.models.headers import UNSAFE, Tensor, header, tensors, unsafe_file
from core.models.jsons import is_pointer, read_json
from core.models.packages import native_types, writing_types
from core.models.packed import method as packed_by
from core.models.packed import packing
from core.models.shapes import learnable

MAX_RANK = 8192
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
              "tekken.json")  # fmt: skip
HEAD = "value_head"
"""A value head where it lies in a folder, by its name without the end."""
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""Files of what turns images, videos and sounds into inputs."""
ADAPTERS = ("LORA", "ADALORA", "IA3", "VERA", "OFT", "LOHA", "LOKR")
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base as it is; pissa, olora, corda and loftq change it."""
ROTARY = ("rope_scaling", "rope_parameters")
DIVIDE = ("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
          "beta_fast", "beta_slow")  # fmt: skip
"""Keys of rotary positions whose values must be above 0."""
SHARES = re.compile(r"(dropout|pdrop)(_p|_prob|_rate)?$")
"""Keys whose values are shares of what is dropped."""
PLAIN = ("F64", "F32", "F16", "BF16")
MAYBE_DENSE = "compressed-tensors"
"""The one way of packing that has a format without any."""
KERNELS = re.compile(r"^_?(attn|experts)_implementation")
THINKER = "thinker_config"
"""Where the config of a model that speaks, too, has that of the part that writes: a whole model by itself."""
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "head_dim",
         "num_attention_heads", "num_labels")  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder says of itself."""

    model_type: str
    architecture: str
    parameters: int
    bytes: int
    """Of the weights on disk."""
    dtype: str
    """Of most parameters, in safetensors' names: F32, BF16, ..."""
    context: int
    """Longest input in tokens; 0 where the config does not tell."""
    vocabulary: int
    chat_template: bool
    packed: str
    """How the weights come quantized (quant_method); "" where they don't."""
    experts: bool
    """Whether it chooses among experts, by its config."""
    senses: bool
    """Whether it brings a processor, so that it may take more than text."""


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter folder says of itself."""

    base: str
    """Name or folder of the model it was trained on, as written by the trainer."""
    peft_type: str
    rank: int
    """0 for methods without one."""
    parameters: int


def inspect(folder: Path, place: str = "model.path") -> ModelFacts:
    """Return the facts of a model folder; raise InputError, blaming `place`, when it can't or must not be loaded."""
    if (folder / "adapter_config.json").exists():
        raise InputError("model.is_adapter", place, folder=str(folder))
    config = read_json(folder / "config.json", place, "model.no_config")
    _refuse_odd_files(folder, place)
    if not isinstance(config.get("model_type"), str):
        raise InputError("model.no_type", place, folder=str(folder))
    _refuse_foreign_code(folder, config, place)
    if (model_type := config["model_type"]) in native_types() - writing_types() and THINKER not in config:
        raise InputError("model.writes_nothing", place, model=model_type)
    if packed := packed_by(config):
        packing(packed, place)
        if THINKER in config and packed != "bitsandbytes":  # it names what it packed as the whole does
            raise InputError("packed.speaks", place, given=packed)
    _refuse_odd_numbers(folder, config, place)
    _refuse_unpacked(folder, packed, place)
    return describe(folder, place)


def describe(folder: Path, place: str = "model.path") -> ModelFacts:
    """Return the facts of a model folder whether it may be loaded or not; raise InputError when it can't be read."""
    config = read_json(folder / "config.json", place, "model.no_config")
    entries = tensors(folder, place)
    found = [folder / name for name in TOKENIZERS if (folder / name).is_file()]
    if not found:
        raise InputError("model.no_tokenizer", place, folder=str(folder))
    if pointer := next((path for path in found if is_pointer(path)), None):
        raise InputError("model.lfs_pointer", place, file=str(pointer))
    text = of_text(config)
    _refuse_giants(text, entries, folder, place)
    by_dtype: dict[str, int] = {}
    for name, entry in entries.items():
        if learnable(name):
            by_dtype[entry.dtype] = by_dtype.get(entry.dtype, 0) + entry.size
    return ModelFacts(
        model_type=str(config.get("model_type", "")),
        architecture=str(named[0]) if isinstance(named := config.get("architectures"), list) and named else "",
        parameters=sum(by_dtype.values()),
        bytes=sum(entry.bytes for entry in entries.values()),
        dtype=max(by_dtype, key=by_dtype.__getitem__, default=""),
        context=_whole(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        vocabulary=_whole(text, "vocab_size"),
        chat_template=has_template(folder, place),
        packed=packed_by(config),
        experts=has_experts(config),
        senses=any((folder / name).is_file() for name in PROCESSORS),
    )


def inspect_adapter(folder: Path, place: str = "tuned") -> AdapterFacts:
    """Return the facts of an adapter folder; raise InputError, blaming `place`, when it can't or must not be loaded."""
    config = read_json(folder / "adapter_config.json", place, "adapter.no_config")
    _refuse_odd_files(folder, place)
    kind = str(config.get("peft_type"))
    if kind not in ADAPTERS:
        raise InputError("adapter.unknown_type", place, given=kind, known=", ".join(ADAPTERS))
    check_whole(folder, place)
    if _maps(folder, {}, place):
        raise InputError("adapter.remote_code", place, folder=str(folder))
    if config.get("init_lora_weights") not in STARTS:
        raise InputError("adapter.changes_base", place, folder=str(folder), start=str(config["init_lora_weights"]))
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        if unsafe := unsafe_file(folder):
            raise InputError("adapter.unsafe", place, folder=str(folder), file=unsafe)
        raise InputError("adapter.no_weights", place, folder=str(folder))
    tensors = header(file, place)
    rank = config.get("r", 0) if kind in ("LORA", "ADALORA", "VERA") else 0
    first = ("lora_A", "lora_embedding_A")
    ranks = [entry.shape[0] for key, entry in tensors.items() if entry.shape and any(name in key for name in first)]
    stored = max(ranks, default=0)
    if not isinstance(rank, int) or not 0 <= rank <= MAX_RANK or (kind == "LORA" and not 1 <= rank <= max(stored, 1)):
        raise InputError("adapter.rank", place, rank=str(rank), stored=stored)
    check_config(config, max(stored, 1), str(folder), place)
    base = str(config.get("base_model_name_or_path") or "")
    return AdapterFacts(base, kind, rank, sum(entry.size for entry in tensors.values()))


def head_file(folder: Path, place: str) -> Path:
    """Return the file with the value head of a folder; raise InputError at `place` where it is not there."""
    file = folder / f"{HEAD}.safetensors"
    if not file.exists():
        if unsafe := next((f"{HEAD}{end}" for end in UNSAFE if (folder / f"{HEAD}{end}").exists()), ""):
            raise InputError("value_head.unsafe", place, folder=str(folder), file=unsafe)
        raise InputError("value_head.missing", place, folder=str(folder))
    return file


def has_experts(config: Mapping[str, Any]) -> bool:
    """Return whether a config tells of experts."""
    return any("expert" in key and isinstance(n, int | list) and n not in (0, 1) for key, n in _settings(config))


def of_text(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with that of the part that writes laid over it."""
    for name in (THINKER, "text_config"):
        if isinstance(part := config.get(name), dict):
            config = config | part
    return config


def has_template(folder: Path, place: str = "model.path") -> bool:
    """Say whether the folder ships a chat template."""
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.exists() and bool(read_json(settings, place, "model.no_tokenizer").get("chat_template"))


def foreign_code(folder: Path, place: str = "model.path") -> consent.Code | None:
    """Return the code of its own that a model folder asks for; None where it asks for none.

    Many name code of their own (auto_map) that transformers has had long since: theirs is never looked at.
    """
    config = read_json(folder / "config.json", place, "model.no_config")
    model_type = str(config.get("model_type", ""))
    if model_type in native_types() or not (maps := _maps(folder, config, place)):
        return None
    return consent.read(folder, model_type, maps, place)


def _maps(folder: Path, config: dict[str, Any], place: str) -> dict[str, Any]:
    """Return name of a file -> auto_map in it: classes of the model's own code."""
    found = {"config.json": config.get("auto_map")}
    for name in ("tokenizer_config.json", *PROCESSORS):
        if (folder / name).exists():
            found[name] = read_json(folder / name, place, "model.no_tokenizer").get("auto_map")
    return {name: told for name, told in found.items() if told}


def _refuse_foreign_code(folder: Path, config: dict[str, Any], place: str) -> None:
    """Refuse what would make a library fetch or run code: models in code that nobody agreed to, kernels of the hub."""
    if code := foreign_code(folder, place):
        consent.check(code, place)
    elif config.get("model_type") not in native_types():
        raise InputError("model.unknown_type", place, folder=str(folder), type=str(config.get("model_type")))
    for key, value in _settings(config):
        if KERNELS.search(key) and "/" in str(value):
            raise InputError("model.remote_kernel", place, folder=str(folder), given=str(value)[:80])
    if "transformers_weights" in config:
        raise InputError("model.shard_outside", place, file=str(folder / "config.json"),
                         shard=str(config["transformers_weights"]))  # fmt: skip


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of a config, those of configs inside it, too."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _settings(value)


def _refuse_odd_files(folder: Path, place: str) -> None:
    """Refuse links to nothing, and pipes and devices: whoever opens one waits for ever."""
    if odd := next((path for path in sorted(folder.iterdir()) if not (path.is_file() or path.is_dir())), None):
        raise InputError("model.odd_file", place, file=str(odd))


def _refuse_giants(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path, place: str) -> None:
    """Refuse a config with sizes that its weights can't have: all the memory would go into making room for them."""
    numbers = sum(entry.size for entry in tensors.values())
    for key in SIZES:
        most = len(tensors) if key == "num_hidden_layers" else numbers
        if isinstance(config.get(key), int) and not 0 <= config[key] <= most:
            raise InputError("model.weights_differ", place, folder=str(folder), names=f"{key} {config[key]}")


def _refuse_odd_numbers(folder: Path, config: dict[str, Any], place: str) -> None:
    """Refuse rotary positions by numbers that are not above 0: they divide; shares that are none; odd settings."""
    for name, value in _settings(config):
        share = SHARES.search(name) and isinstance(value, int | float)
        if (share and not 0 <= value <= 1) or (name == "quantization_config" and not isinstance(value, dict | None)):
            raise InputError("model.bad_value", place, folder=str(folder), name=name, given=str(value)[:80])
    rotary = [value for key, value in _settings(config) if key in ROTARY and isinstance(value, dict)]
    for name, number in (pair for told in rotary for pair in _settings(told)):
        odd = isinstance(number, str) or (isinstance(number, int | float) and not 0 < number < math.inf)
        if name in DIVIDE and odd:
            raise InputError("model.rotary", place, folder=str(folder), name=name, given=str(number)[:80])


def _refuse_unpacked(folder: Path, packed: str, place: str) -> None:
    """Refuse plain weights whose config calls them packed, as some tools leave it when they unpack; and the reverse.

    Bits that no config explains would be read as numbers, and mean something else.
    """
    entries = tensors(folder, place)
    odd = [name for name, entry in entries.items() if name.endswith("weight") and entry.dtype not in PLAIN]
    if odd and not packed:
        raise InputError("packed.untold", place, folder=str(folder), name=odd[0], given=entries[odd[0]].dtype)
    if packed not in ("", MAYBE_DENSE) and all(entry.dtype in PLAIN for entry in entries.values()):
        raise InputError("packed.plain", place, folder=str(folder), given=packed)


def _whole(config: dict[str, Any], *keys: str) -> int:
    """Return the first of the keys that holds a whole number, else 0."""
    return next((config[key] for key in keys if isinstance(config.get(key), int)), 0)
