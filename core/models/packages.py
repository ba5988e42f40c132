"""Packages that only some wishes need: whether they are here, and whether they can be imported at all.

transformers and peft import many of them as soon as they are installed, so that one broken package (built for another
torch, or without one that it needs itself) would break every run. `shield` tries them in processes of their own first.
"""

from __future__ import annotations

import ast
import importlib
import json
import runpy
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from core.errors import InputError
from core.files import write_json

TRIED = ("torchvision", "torchaudio", "torchao", "hqq", "gptqmodel", "optimum", "aqlm", "eetq", "compressed_tensors",
         "flash_attn", "liger_kernel", "deepspeed", "apex", "timm", "auto_round", "vptq")  # fmt: skip
"""Not what we depend on ourselves."""
FETCHING = ("kernels",)
"""Packages by which transformers and bitsandbytes fetch native code from the hub and run it: nobody was asked."""
WRITING = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
           "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")  # fmt: skip
"""Tables of transformers: type -> class of a model that goes on with a text, with what it sees or hears."""
ALONE = {"gptqmodel": "gptqmodel optimum device-smi pypcre tokenicer logbar defuser threadpoolctl"}
"""Packages that ask for another torch, which pip would bring; what is to be installed instead of all they ask for."""
SECONDS = 120


def require(name: str, place: str) -> None:
    """Raise InputError, blaming the setting at `place`, when a package is missing or can't be imported."""
    check_here(name, place)
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError, TypeError) as error:
        raise InputError("package.broken", place, package=name, what=_last(str(error))) from None


def check_here(name: str, place: str) -> None:
    """Raise InputError, blaming the setting at `place`, when a package is not installed; nothing is imported."""
    if find_spec(name.partition(".")[0]) is not None:
        return
    if name in ALONE:
        raise InputError("package.alone", place, package=name, names=ALONE[name])
    raise InputError("package.missing", place, package=name)


def shield(workspace: Path, names: Sequence[str] = TRIED) -> dict[str, str]:
    """Hide the installed packages that can't be imported; return why, by name. Those that fetch code are always hidden.

    What was found is kept in the workspace, so that each version of a package is tried once.
    """
    for name in FETCHING:
        sys.modules[name] = None  # type: ignore[assignment]  # find_spec tells everybody that it is not there
    here = [name for name in names if find_spec(name) is not None]
    if not here:
        return {}
    store = workspace / ".cache" / "packages.json"
    known = _read(store)
    broken = {}
    for name in here:
        key = f"{name} {_version(name)} torch {_version('torch')} {sys.prefix}"
        if key not in known:
            known[key] = _tried(name)
            write_json(store, known)
        if known[key]:
            broken[name] = known[key]
            sys.modules[name] = None  # type: ignore[assignment]
    return broken


def _tried(name: str) -> str:
    """Return "" for a package that can be imported, else why not."""
    code = f"import torch, {name}"
    try:
        done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", timeout=SECONDS)  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    return "" if done.returncode == 0 else _last(done.stderr) or f"exit status {done.returncode}"


def _version(name: str) -> str:
    names = metadata.packages_distributions().get(name, [])
    return metadata.version(names[0]) if names else "?"


def _read(store: Path) -> dict[str, str]:
    try:
        return dict(json.loads(store.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]


@cache
def native_types() -> frozenset[str]:
    """Return the model types that the installed transformers has, without the seconds that importing it takes."""
    return frozenset(runpy.run_path(str(_auto("auto_mappings.py")))["CONFIG_MAPPING_NAMES"])  # it imports nothing


@cache
def writing_types() -> frozenset[str]:
    """Return those types of which transformers has a model that goes on with a text; as cold."""
    tables = [node for node in ast.parse(_auto("modeling_auto.py").read_text(encoding="utf-8")).body
              if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in WRITING]  # fmt: skip
    pairs = (ast.literal_eval(node) for table in tables for node in ast.walk(table.value) if _is_pair(node))
    return frozenset(model_type for model_type, _ in pairs)


def _is_pair(node: ast.AST) -> bool:
    return isinstance(node, ast.Tuple) and all(isinstance(part, ast.Constant) for part in node.elts)


def _auto(name: str) -> Path:
    """Return a file of transformers' auto classes."""
    found = find_spec("transformers")
    assert found and found.origin
    return Path(found.origin).parent / "models" / "auto" / name
