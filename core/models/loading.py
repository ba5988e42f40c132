"""Put a tokenizer and a language model into memory, from a folder or the hub: safetensors, no code but by consent.

A model that sees or hears is one like the others; its processor is loaded apart (senses.py). Of one that speaks, the
part that writes is loaded alone. A model that misses a weight, or whose weights have other shapes than its config says,
is refused: transformers would fill the holes with random numbers.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto

from core import templates
from core.errors import InputError
from core.models import ahead, bits, foreign, senses, vocabulary
from core.models.attention import implementation
from core.models.device import compute_dtype, pick_device
from core.models.inspect import THINKER, inspect
from core.models.names import shorten
from core.models.packages import require
from core.models.packed import method, packing
from core.models.rope import stretch
from core.models.trial import check_ends
from core.sections import Hardware, Model
from core.workspace import HUB_ID, locate

if TYPE_CHECKING:
    from core.events import Writer

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Files of a hub model that are fetched; folders in it hold other formats."""
UNUSABLE = (ValueError, TypeError, KeyError, AttributeError, ImportError, IndexError, ZeroDivisionError, AssertionError,
            SafetensorError, StrictDataclassError)  # fmt: skip
"""What transformers and tokenizers raise for a config or a tokenizer file they can't make sense of."""
RARE = "☃ 文 a"
"""A text that a tokenizer must take whether it has tokens for it or not."""
MOST_MISSING = 2
"""Times the weights in the files that a config may make; what is missing is then listed by name."""


def load(
    model: Model, workspace: Path, hardware: Hardware, *, training: bool = False, events: Writer | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return (model, tokenizer) that fit each other: load_model, load_tokenizer and vocabulary.fit."""
    tokenizer = load_tokenizer(model, workspace, events)
    loaded = load_model(model, workspace, hardware, training=training)
    vocabulary.fit(loaded, tokenizer, model)
    return loaded, tokenizer


def load_tokenizer(
    model: Model, workspace: Path, events: Writer | None = None, *, template: str = "auto"
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the new tokens of the settings, a pad token and a chat template, all in memory only.

    A missing pad token is the end token; a missing template is our ChatML, told as a warning to `events`. `template`:
    the name of one of ours to be used instead.
    """
    folder = model_folder(model, workspace)
    config = _config(folder)
    if events and (code := foreign.of(config)):
        params = {"folder": str(folder), "files": ", ".join(code.files), "sha": code.sha}
        events.write("warning", code="code.runs", place="model.path", params=params)
    tokenizer = read_tokenizer(folder, config)
    vocabulary.add(tokenizer, model)
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
    elif not isinstance(tokenizer.chat_template, str | dict | None):
        raise InputError("model.bad_tokenizer", "model.path", folder=str(folder), what="chat_template is no text")
    elif isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise InputError("model.template_names", "data.template", names=", ".join(tokenizer.chat_template))
    elif tokenizer.chat_template is None and (own := senses.template(folder)):
        tokenizer.chat_template = own
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = templates.read("chatml")
        if events:
            events.write("warning", code="model.template_default", place="model.path", params={"folder": str(folder)})
    check_ends(tokenizer)
    return tokenizer


def read_tokenizer(folder: Path, config: PreTrainedConfig, place: str = "model.path") -> PreTrainedTokenizerBase:
    """Return the tokenizer of an inspected folder as it is; raise InputError at `place` when it can't be read."""
    try:
        with _Bare():
            read = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False, local_files_only=True)
            read(RARE)
    except (*UNUSABLE, OSError) as error:
        raise InputError("model.bad_tokenizer", place, folder=str(folder), what=_line(error)) from None
    read.init_kwargs.pop("auto_map", None)
    return read


class _Bare:
    """Gives a kind to an error that has none: tokenizers raises bare Exceptions for files it can't make sense of."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is Exception:
            raise ValueError(str(error))


def load_model(
    model: Model, workspace: Path, hardware: Hardware, *, training: bool = False, longest: int = 0, aside: bool = False,
    check: Callable[[PreTrainedModel], None] | None = None,
) -> PreTrainedModel:  # fmt: skip
    """Return the model on its device, in eval mode, every weight as stored.

    Weights are in the compute dtype; for training on a CPU they are fp32 whatever the precision but pure_bf16.
    longest: tokens to which positions are stretched where the settings leave it open. aside: it is left in the memory
    of the machine, for a device that will hold a part of it alone. check: is shown the model before it has weights.
    Raises InputError at model.path, DeviceError at hardware.device.
    """
    device = pick_device(hardware)
    folder = model_folder(model, workspace)
    config = _config(folder)
    if model.rope != "none":
        if not (wanted := model.context or longest):
            raise InputError("rope.no_context", "model.context")
        stretch(config, model.rope, wanted)
    dtype = compute_dtype(model, device)
    if training and device.type == "cpu" and model.precision != "pure_bf16":
        dtype = torch.float32
    quantization = _quantization(model, config, device, dtype, training=training)
    made = _made(folder, config, packed=bool(quantization or method(config.to_dict())))
    if model.quantizer.kind.startswith("bnb"):
        bits.check(made, quantization)
    if check:
        check(made)
    try:
        loaded, info = _auto(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            attn_implementation=implementation(model, device.type, training=training),
            device_map={"": "cpu" if aside else device},
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are listed in info, and refused below with all the others
            output_loading_info=True,
        )
    except UNUSABLE as error:
        raise InputError("model.unusable", "model.path", folder=str(folder), what=_line(error)) from None
    _check_whole(folder, info)
    bits.make_ready(loaded, made=model.quantizer.kind.startswith("bnb"))
    senses.take_texts(loaded)
    return ahead.checked(loaded) if training and not aside else loaded


def model_folder(model: Model, workspace: Path) -> Path:
    """Return the folder of the model: in the workspace or bundled, else fetched from the hub (or its cache)."""
    try:
        return locate(model.path, workspace, "model.path")
    except InputError:
        if not HUB_ID.fullmatch(model.path):
            raise
    return _fetch(model)


def _config(folder: Path) -> PreTrainedConfig:
    """Return the config of an inspected folder, or of its thinker; its own code is run first, where agreed to."""
    inspect(folder)
    foreign.bring(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except UNUSABLE as error:
        raise InputError("model.unusable", "model.path", folder=str(folder), what=_line(error)) from None
    vars(config).pop("auto_map", None)  # what we save needs no code of others
    config.get_text_config().return_dict = config.return_dict = True  # what is asked for by name would be a tuple
    return bits.handed_on(config, vars(config).get(THINKER, config))


def _auto(config: PreTrainedConfig) -> Any:
    """Return the auto class for a config: the one whose class it names, else the one that has its type."""
    named = config.architectures or []
    both: Any = (
        (AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (AutoModelForMultimodalLM, modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
    )
    having = [(auto, names[config.model_type]) for auto, names in both if config.model_type in names]
    fitting = [auto for auto, name in having if {name} & set(named)]
    return next(iter([*fitting, *(auto for auto, _ in having)]), AutoModelForCausalLM)


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
        quantization = model.quantizer.loading(dtype, device)
        if quantization and model.quantizer.kind.startswith("bnb"):
            quantization.llm_int8_skip_modules = bits.whole(config.model_type)
        return quantization
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
    if needs.asks and training:
        config.quantization_config["backend"] = "auto_trainable"
    return None


def _made(folder: Path, config: PreTrainedConfig, *, packed: bool) -> PreTrainedModel:
    """Return the model without its weights.

    Refuses a config that makes no model, or far more weights than the files hold, before memory is taken for them, and
    packed weights that are damaged.
    """
    stored = inspect(folder).parameters
    try:
        with torch.device("meta"):
            made = _auto(config).from_config(copy.deepcopy(config), attn_implementation="eager")
        if method(config.to_dict()) == "bitsandbytes":
            bits.check_packed(made, folder)
    except (*UNUSABLE, RuntimeError) as error:
        raise InputError("model.unusable", "model.path", folder=str(folder), what=_line(error)) from None
    if not packed and made.num_parameters() > MOST_MISSING * stored:
        names = f"{made.num_parameters():,} weights instead of {stored:,}"
        raise InputError("model.weights_differ", "model.path", folder=str(folder), names=names)
    return made


def _check_whole(folder: Path, info: dict[str, Any]) -> None:
    """Refuse weights that are missing, left over or of another shape; tied and ignorable ones are not in `info`."""
    if shapes := info["mismatched_keys"]:
        names = [f"{name} {tuple(stored)} instead of {tuple(wanted)}" for name, stored, wanted in shapes]
        raise InputError("model.weights_differ", "model.path", folder=str(folder), names=shorten(names))
    if missing := info["missing_keys"]:
        raise InputError("model.weights_missing", "model.path", folder=str(folder), names=shorten(missing))
    if left := info["unexpected_keys"]:
        raise InputError("model.weights_unknown", "model.path", folder=str(folder), names=shorten(left))


def _line(error: BaseException) -> str:
    """Return the beginning of an error, short enough for a message; a word alone with the kind of error before it."""
    text = " ".join(str(error).split()).rstrip(".")
    told = text if " " in text else f"{type(error).__name__} {text}".strip()
    return textwrap.shorten(told, 240, placeholder=" …")
