"""What a folder with a model or an adapter holds, read from its JSON files and safetensors headers alone.

Cold: neither torch nor transformers; milliseconds for a model of any size. What can be refused without loading a weight
is refused here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.models.packed import method as packed_by
from core.models.packed import packing

MAX_JSON_BYTES = 64 << 20
MAX_HEADER_BYTES = 100 << 20
"""What safetensors itself allows."""
MAX_RANK = 8192
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pt2", ".gguf", ".h5", ".msgpack")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
              "tekken.json")  # fmt: skip
ADAPTERS = ("LORA", "ADALORA", "IA3", "VERA", "OFT", "LOHA", "LOKR")
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base as it is; pissa, olora, corda and loftq change it."""
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


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
    if not isinstance(config.get("model_type"), str):
        raise InputError("model.no_type", place, folder=str(folder))
    _refuse_foreign_code(folder, config, place)
    if packed := packed_by(config):
        packing(packed, place)
    tensors = {key: entry for file in weight_files(folder, place) for key, entry in header(file, place).items()}
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise InputError("model.no_tokenizer", place, folder=str(folder))
    text = config.get("text_config")
    text = config | text if isinstance(text, dict) else config
    by_dtype: dict[str, int] = {}
    for entry in tensors.values():
        by_dtype[entry.dtype] = by_dtype.get(entry.dtype, 0) + entry.size
    return ModelFacts(
        model_type=config["model_type"],
        architecture=str(next(iter(config.get("architectures") or []), "")),
        parameters=sum(by_dtype.values()),
        bytes=sum(size * _width(dtype) // 8 for dtype, size in by_dtype.items()),
        dtype=max(by_dtype, key=by_dtype.__getitem__),
        context=_whole(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        vocabulary=_whole(text, "vocab_size"),
        chat_template=has_template(folder, place),
        packed=packed,
    )


def inspect_adapter(folder: Path, place: str = "tuned") -> AdapterFacts:
    """Return the facts of an adapter folder; raise InputError, blaming `place`, when it can't or must not be loaded."""
    config = read_json(folder / "adapter_config.json", place, "adapter.no_config")
    kind = str(config.get("peft_type"))
    if kind not in ADAPTERS:
        raise InputError("adapter.unknown_type", place, given=kind, known=", ".join(ADAPTERS))
    if config.get("init_lora_weights") not in STARTS:
        raise InputError("adapter.changes_base", place, folder=str(folder), start=str(config["init_lora_weights"]))
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        if unsafe := _unsafe_file(folder):
            raise InputError("adapter.unsafe", place, folder=str(folder), file=unsafe)
        raise InputError("adapter.no_weights", place, folder=str(folder))
    tensors = header(file, place)
    rank = config.get("r", 0) if kind in ("LORA", "ADALORA", "VERA") else 0
    stored = max((entry.shape[0] for key, entry in tensors.items() if "lora_A" in key and entry.shape), default=0)
    if not isinstance(rank, int) or not 0 <= rank <= MAX_RANK or (kind == "LORA" and not 1 <= rank <= max(stored, 1)):
        raise InputError("adapter.rank", place, rank=str(rank), stored=stored)
    base = str(config.get("base_model_name_or_path") or "")
    return AdapterFacts(base, kind, rank, sum(entry.size for entry in tensors.values()))


def weight_files(folder: Path, place: str) -> list[Path]:
    """Return the safetensors files that the model consists of, all there and all inside the folder."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if unsafe := _unsafe_file(folder):
            raise InputError("model.unsafe", place, folder=str(folder), file=unsafe)
        raise InputError("model.no_weights", place, folder=str(folder))
    weight_map = read_json(index, place, "model.no_weights").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("model.bad_json", place, file=str(index), what="no weight_map")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # a name with a folder in it could read any file of the machine
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError("model.shard_outside", place, file=str(index), shard=name)
        if not (folder / name).exists():
            raise InputError("model.shard_missing", place, folder=str(folder), shard=name)
    return [folder / name for name in names]


def header(file: Path, place: str) -> dict[str, Tensor]:
    """Return name -> entry of a safetensors file whose size is what its header says; raise InputError else.

    Format: 8 bytes little-endian length, so much JSON, the data (github.com/huggingface/safetensors).
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(len(LFS))
        if first == LFS:
            raise InputError("model.lfs_pointer", place, file=str(file))
        length = int.from_bytes(first[:8], "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise InputError("model.bad_weights", place, file=str(file), what="no header")
        stream.seek(8)
        text = stream.read(length)
    try:
        entries = {key: value for key, value in json.loads(text).items() if key != "__metadata__"}
        found = {key: Tensor(str(entry["dtype"]), tuple(map(int, entry["shape"]))) for key, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise InputError("model.bad_weights", place, file=str(file), what="unreadable header") from None
    if not found:
        raise InputError("model.bad_weights", place, file=str(file), what="no tensors")
    if size != 8 + length + end:
        what = f"{size} bytes instead of {8 + length + end}"
        raise InputError("model.bad_weights", place, file=str(file), what=what)
    return found


def has_template(folder: Path, place: str = "model.path") -> bool:
    """Say whether the folder ships a chat template."""
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.exists() and bool(read_json(settings, place, "model.no_tokenizer").get("chat_template"))


def read_json(path: Path, place: str, missing: str) -> dict[str, Any]:
    """Return the JSON object in a file; `missing` is the code for a file that is not there."""
    if not path.is_file():
        raise InputError(missing, place, folder=str(path.parent))
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError("model.bad_json", place, file=str(path), what="too large")
    content = path.read_bytes()
    if content.startswith(LFS):
        raise InputError("model.lfs_pointer", place, file=str(path))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise InputError("model.bad_json", place, file=str(path), what="not JSON") from None
    if not isinstance(value, dict):
        raise InputError("model.bad_json", place, file=str(path), what="no object")
    return value


def _refuse_foreign_code(folder: Path, config: dict[str, Any], place: str) -> None:
    """Refuse what would make a library fetch or run code: auto_map, and kernels of the hub named in the config."""
    settings = folder / "tokenizer_config.json"
    tokenizer = read_json(settings, place, "model.no_tokenizer") if settings.exists() else {}
    if config.get("auto_map") or tokenizer.get("auto_map"):
        raise InputError("model.remote_code", place, folder=str(folder))
    nested = [config, *(value for value in config.values() if isinstance(value, dict))]
    for part in nested:
        for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
            if "/" in str(part.get(key, "")):
                raise InputError("model.remote_kernel", place, folder=str(folder), given=str(part[key]))
    if "transformers_weights" in config:
        raise InputError("model.shard_outside", place, file=str(folder / "config.json"),
                         shard=str(config["transformers_weights"]))  # fmt: skip


def _unsafe_file(folder: Path) -> str:
    """Return the name of a file with weights in a format that is never opened; empty when there is none."""
    files = sorted(path.name for path in folder.iterdir() if path.suffix in UNSAFE and path.stem != "training_args")
    return files[0] if files else ""


def _whole(config: dict[str, Any], *keys: str) -> int:
    """Return the first of the keys that holds a whole number, else 0."""
    return next((config[key] for key in keys if isinstance(config.get(key), int)), 0)


def _width(dtype: str) -> int:
    """Return the bits of one element of a safetensors dtype (F32, BF16, I8, F8_E4M3, F4, BOOL)."""
    digits = dtype.split("_")[0].lstrip("BFIUC")
    return int(digits) if digits.isdigit() else 8
