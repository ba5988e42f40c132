"""Put a tokenizer and a causal language model into memory, from a folder or the hub: safetensors, no foreign code.

A model that misses a weight, or whose weights have other shapes than its config says, is refused: transformers would
fill the holes with random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_flash_attn_2_available

from core import templates
from core.errors import InputError
from core.models.device import compute_dtype, pick_device
from core.models.inspect import inspect
from core.models.packages import require
from core.models.packed import method, packing
from core.models.rope import stretch
from core.sections import Hardware, Model
from core.workspace import HUB_ID, locate

if TYPE_CHECKING:
    from core.events import Writer

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Files of a hub model that are fetched; folders in it hold other formats."""
UNUSABLE = (ValueError, TypeError, KeyError, AttributeError, ImportError, ZeroDivisionError, StrictDataclassError)
"""What transformers and tokenizers raise for a config or a tokenizer file they can't make sense of."""
SHOWN = 5
"""Names in a message at most."""


def load(
    model: Model, workspace: Path, hardware: Hardware, *, training: bool = False, events: Writer | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return (model, tokenizer) that fit each other: load_model, load_tokenizer and check_vocabulary."""
    tokenizer = load_tokenizer(model, workspace, events)
    loaded = load_model(model, workspace, hardware, training=training)
    check_vocabulary(loaded, tokenizer)
    return loaded, tokenizer


def load_tokenizer(
    model: Model, workspace: Path, events: Writer | None = None, *, template: str = "auto"
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a pad token and a chat template, both in memory only.

    A missing pad token is the end token; a missing template is our ChatML, told as a warning to `events`. `template`:
    the name of one of ours to be used instead.
    """
    folder = model_folder(model, workspace)
    config = _config(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False, local_files_only=True)
    except (*UNUSABLE, OSError) as error:
        raise InputError("model.bad_tokenizer", "model.path", folder=str(folder), what=_line(error)) from None
    if tokenizer.eos_token_id is None:
        raise InputError("model.no_end_token", "model.path", folder=str(folder))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if template != "auto":
        tokenizer.chat_template = templates.read(template)
        if end := templates.ENDS.get(template):
            if end not in tokenizer.get_vocab():
                raise InputError("model.template_token", "data.template", template=template, token=end)
            tokenizer.eos_token = end  # so that what is trained knows where to stop when it answers
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = templates.read("chatml")
        if events:
            events.write("warning", code="model.template_default", place="model.path", params={"folder": str(folder)})
    return tokenizer


def load_model(
    model: Model, workspace: Path, hardware: Hardware, *, training: bool = False, longest: int = 0
) -> PreTrainedModel:
    """Return the model on its device, in eval mode, every weight as stored.

    Weights are in the compute dtype; for training on a CPU they are fp32 whatever the precision. longest: tokens to
    which positions are stretched where the settings leave it open.
    Raises InputError at model.path, DeviceError at hardware.device.
    """
    device = pick_device(hardware)
    folder = model_folder(model, workspace)
    config = _config(folder)
    if model.rope != "none":
        if not (wanted := model.context or longest):
            raise InputError("rope.no_context", "model.context")
        stretch(config, model.rope, wanted)
    dtype = torch.float32 if training and device.type == "cpu" else compute_dtype(model, device)
    quantization = _quantization(model, config, device, dtype, training=training)
    try:
        loaded, info = cast(Any, AutoModelForCausalLM).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            attn_implementation=_attention(model, device),
            device_map={"": device},
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are listed in info, and refused below with all the others
            output_loading_info=True,
        )
    except UNUSABLE as error:
        raise InputError("model.unusable", "model.path", folder=str(folder), what=_line(error)) from None
    _check_whole(folder, info)
    _keep_packed(loaded)
    return loaded


def model_folder(model: Model, workspace: Path) -> Path:
    """Return the folder of the model: in the workspace or bundled, else fetched from the hub (or its cache)."""
    try:
        return locate(model.path, workspace, "model.path")
    except InputError:
        if not HUB_ID.fullmatch(model.path):
            raise
    return _fetch(model)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError when the tokenizer knows tokens for which the model has no embedding."""
    rows = embedding_rows(model)
    if len(tokenizer) > rows:
        raise InputError("model.vocabulary", "model.path", tokens=len(tokenizer), rows=rows)


def embedding_rows(model: PreTrainedModel) -> int:
    """Return how many tokens the model has embeddings for."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]


def _config(folder: Path) -> PreTrainedConfig:
    """Return the config of an inspected folder."""
    inspect(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except UNUSABLE as error:
        raise InputError("model.unusable", "model.path", folder=str(folder), what=_line(error)) from None


def _fetch(model: Model) -> Path:
    """Return the folder of a hub model in the cache, downloading what is missing."""
    try:
        return Path(snapshot_download(model.path, revision=model.revision or None, allow_patterns=WANTED,
                                      ignore_patterns=["*/*"], etag_timeout=10))  # fmt: skip
    except GatedRepoError:
        raise InputError("model.gated", "model.path", model=model.path) from None
    except RepositoryNotFoundError:
        raise InputError("model.not_on_hub", "model.path", model=model.path) from None
    except RevisionNotFoundError:
        raise InputError("model.no_revision", "model.revision", model=model.path, revision=model.revision) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError) as error:
        raise InputError("model.offline", "model.path", model=model.path, what=_line(error)) from None


def _quantization(
    model: Model, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, *, training: bool
) -> Any:
    """Return how from_pretrained shall quantize; see to it that a model that comes quantized can be used here."""
    name = method(config.to_dict())
    if not name:
        return model.quantizer.loading(dtype, device)
    if model.quantizer.kind != "none":
        raise InputError("packed.twice", "model.quantizer", given=name)
    needs = packing(name)
    for package in needs.packages:
        require(package, "model.path")
    if needs.cuda and device.type != "cuda":
        raise InputError("quantizer.device", "model.path", given=name, device=device.type)
    if training and not needs.trains:
        raise InputError("packed.no_training", "model.path", given=name)
    if needs.unpacked:
        config.quantization_config["dequantize"] = True
    return None


def _keep_packed(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for answers.

    On a CPU with AVX-512 BF16 an answer without gradients repacks them for good; what is trained above them gets no
    gradient any more, and widths that 32 does not divide fail (bitsandbytes 0.50.2, Linear4bit.forward).
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _attention(model: Model, device: torch.device) -> str:
    """Return the attention implementation; never the one that config.json asks for, which could be code of the hub."""
    if model.attention != "flash_attention_2":
        return "sdpa" if model.attention == "auto" else model.attention
    if device.type != "cuda" or not is_flash_attn_2_available():
        raise InputError("model.attention", "model.attention", given=model.attention)
    return model.attention


def _check_whole(folder: Path, info: dict[str, Any]) -> None:
    """Refuse weights that are missing, left over or of another shape; tied and ignorable ones are not in `info`."""
    if shapes := info["mismatched_keys"]:
        names = [f"{name} {tuple(stored)} instead of {tuple(wanted)}" for name, stored, wanted in shapes]
        raise InputError("model.weights_differ", "model.path", folder=str(folder), names=shorten(names))
    if missing := info["missing_keys"]:
        raise InputError("model.weights_missing", "model.path", folder=str(folder), names=shorten(missing))
    if left := info["unexpected_keys"]:
        raise InputError("model.weights_unknown", "model.path", folder=str(folder), names=shorten(left))


def shorten(names: Iterable[str]) -> str:
    """Return the first names in order, and how many more there are."""
    ordered = sorted(names)
    more = f", … (+{len(ordered) - SHOWN})" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more


def _line(error: BaseException) -> str:
    """Return the first line of an error, short enough for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
