"""Models in code of their own: classes from a private copy of exactly the bytes that somebody agreed to.

transformers itself loads no foreign code here, and its cache of such code is never read. The classes are imported from
the copy and made known to its auto classes, which then load the model like any other.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

from core.errors import InputError
from core.models import consent
from core.models.consent import Code
from core.models.inspect import foreign_code

MODELS = ("AutoModelForCausalLM", "AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModel")
"""Auto classes under which a model may name itself, the fittest first."""
BESIDE: dict[str, Any] = {
    "AutoTokenizer": AutoTokenizer.register,
    "AutoProcessor": AutoProcessor.register,
    "AutoImageProcessor": AutoImageProcessor.register,
    "AutoFeatureExtractor": AutoFeatureExtractor.register,
}
"""What else of a model may be in code."""
FAILS = (ImportError, SyntaxError, NameError, AttributeError, ValueError, TypeError, KeyError, RuntimeError, OSError)
"""What code raises on import that was written for another version, or needs what is not here."""
_BROUGHT: dict[str, tuple[Code, tempfile.TemporaryDirectory[str]]] = {}
"""Name of a package in sys.modules -> its code, and the copy that it is imported from."""


def bring(folder: Path, place: str = "model.path") -> None:
    """Run the code of a model, if it has any, so that the auto classes know it.

    Raises InputError at `place` without consent or flag, and for code that fails.
    """
    code = foreign_code(folder, place)
    if code is None:
        return
    consent.check(code, place)  # these bytes, not those that were looked at before
    try:
        _register(code)
    except FAILS as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError("code.fails", place, folder=str(folder), what=what) from None


def of(config: PreTrainedConfig) -> Code | None:
    """Return the code that a config is of; None for one of transformers' own."""
    code, _ = _BROUGHT.get(type(config).__module__.partition(".")[0], (None, None))
    return code


def keep(model: PreTrainedModel, folder: Path) -> Code | None:
    """Lay the code of a model, if it has any, beside the model that was saved: the same code, so the same consent."""
    code = of(model.config)
    if code is None:
        return None
    for name, content in code.files.items():
        (folder / name).write_bytes(content)
    for name, told in code.maps.items():
        if (path := folder / name).is_file():
            settings = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": told}
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return code


def _register(code: Code) -> None:
    """Make the classes of a model known."""
    named = next((name for name in MODELS if name in code.classes), "")
    if not named or "AutoConfig" not in code.classes:
        raise ValueError(f"auto_map names no AutoConfig, or none of {', '.join(MODELS)}")
    config, model = _class(code, "AutoConfig"), _class(code, named)
    AutoConfig.register(code.type, config, exist_ok=True)
    config.register_for_auto_class()  # by which transformers knows code that may be of an older kind
    model.register_for_auto_class(named)
    AutoModelForCausalLM.register(config, add_generation_mixin_to_remote_model(model), exist_ok=True)
    for name, register in BESIDE.items():
        if name in code.classes:
            register(config, _class(code, name), exist_ok=True)


def _class(code: Code, name: str) -> Any:
    """Return the class that a model names for an auto class."""
    module, _, cls = code.classes[name].partition(".")
    return vars(importlib.import_module(f"{_package(code)}.{module}"))[cls]


def _package(code: Code) -> str:
    """Return the name of the package in which the files of a model are modules."""
    name = f"foreign_{code.sha}"
    if name not in _BROUGHT:
        copy = tempfile.TemporaryDirectory(prefix="tuneboard-code-")  # 0700
        for file, content in code.files.items():
            (Path(copy.name) / file).write_bytes(content)
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [copy.name]
        sys.modules[name] = module_from_spec(spec)
        _BROUGHT[name] = code, copy
    return name
