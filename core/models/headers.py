"""The headers of safetensors files: names, formats and shapes of the weights of a folder, without reading any. Cold.

Nothing else is opened, and nothing outside of the folder.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from core.errors import InputError
from core.models.jsons import LFS, read_json

MAX_HEADER_BYTES = 100 << 20
"""What safetensors itself allows."""
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pt2", ".gguf", ".h5", ".msgpack")


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def bytes(self) -> int:
        return self.size * _width(self.dtype) // 8


def tensors(folder: Path, place: str) -> dict[str, Tensor]:
    """Return name -> entry of every weight of a model folder, each in one file: in that which the index names."""
    found: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    for file in weight_files(folder, place):
        entries = header(file, place)
        if twice := sorted(found.keys() & entries.keys()):
            what = f"{twice[0]} stands in {held[twice[0]]}, too"
            raise InputError("model.bad_weights", place, file=str(file), what=what)
        found |= entries
        held |= dict.fromkeys(entries, file.name)
    index = folder / INDEX
    told = _weight_map(index, place) if index.exists() and ONE not in held.values() else {}
    if wrong := next((key for key in told if held.get(key, told[key]) != told[key]), ""):
        what = f"{wrong} stands in {held[wrong]}, not in {told[wrong]}"
        raise InputError("model.bad_weights", place, file=str(index), what=what)
    return found


def weight_files(folder: Path, place: str) -> list[Path]:
    """Return the safetensors files that the model consists of, all there and all inside the folder."""
    if (folder / ONE).is_file():
        return [folder / ONE]
    index = folder / INDEX
    if not index.exists():
        if unsafe := unsafe_file(folder):
            raise InputError("model.unsafe", place, folder=str(folder), file=unsafe)
        raise InputError("model.no_weights", place, folder=str(folder))
    names = sorted(set(_weight_map(index, place).values()))
    for name in names:
        # a name with a folder in it could read any file of the machine
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError("model.shard_outside", place, file=str(index), shard=name)
        if not (folder / name).is_file():
            raise InputError("model.shard_missing", place, folder=str(folder), shard=name)
    return [folder / name for name in names]


def _weight_map(index: Path, place: str) -> dict[str, str]:
    """Return name of a weight -> name of its file, as an index tells."""
    told = read_json(index, place, "model.no_weights")
    weight_map = told.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("model.bad_json", place, file=str(index), what="no weight_map")
    if not isinstance(told.get("metadata"), dict):  # without which transformers fails
        raise InputError("model.bad_json", place, file=str(index), what="no metadata (it may be empty)")
    return {name: str(file) for name, file in weight_map.items()}


def header(file: Path, place: str) -> dict[str, Tensor]:
    """Return name -> entry of a safetensors file whose size is what its header says; raise InputError else.

    Format: 8 bytes little-endian length, so much JSON, the data (github.com/huggingface/safetensors). Read again only
    when the file was written since: the form asks with every change.
    """
    stat = file.stat()
    return _header(file, stat.st_size, stat.st_mtime_ns, place)


@lru_cache(maxsize=512)
def _header(file: Path, size: int, written: int, place: str) -> dict[str, Tensor]:
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
        found = {key: _tensor(str(entry["dtype"]), tuple(map(int, entry["shape"]))) for key, entry in entries.items()}
        spans = [tuple(map(int, entry["data_offsets"])) for entry in entries.values()]
        end = max((end for _, end in spans), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise InputError("model.bad_weights", place, file=str(file), what="unreadable header") from None
    if not found:
        raise InputError("model.bad_weights", place, file=str(file), what="no tensors")
    told = zip(found.values(), spans, strict=True)
    if any(begin < 0 or min(t.shape, default=0) < 0 or t.bytes != stop - begin for t, (begin, stop) in told):
        raise InputError("model.bad_weights", place, file=str(file), what="impossible sizes")
    if size != 8 + length + end:
        what = f"{size} bytes instead of {8 + length + end}"
        raise InputError("model.bad_weights", place, file=str(file), what=what)
    return found


def unsafe_file(folder: Path) -> str:
    """Return the name of a file with weights in a format that is never opened; empty when there is none."""
    files = sorted(path.name for path in folder.iterdir() if path.suffix in UNSAFE and path.stem != "training_args")
    return files[0] if files else ""


@lru_cache(maxsize=1 << 12)
def _tensor(dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return an entry that all weights share that are alike: of experts there may be thousands."""
    return Tensor(dtype, shape)


def _width(dtype: str) -> int:
    """Return the bits of one element of a safetensors dtype (F32, BF16, I8, F8_E4M3, F4, BOOL)."""
    digits = dtype.split("_")[0].lstrip("BFIUC")
    return int(digits) if digits.isdigit() else 8
