"""English texts of every code that the engine can raise or report; the other languages stand in locales/.

Each error text says what is wrong, where, and what to do. `{name}` is a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MESSAGES: dict[str, str] = {
    # settings: the names after `config.` that are pydantic's error types carry pydantic's parameters
    "config.assignment": "“{text}” is not a setting. Write key=value, for example tuner.rank=16.",
    "config.job": "There is no job “{given}”. Choose one of: {known}.",
    "config.not_mapping": "{where} holds no settings. Write one “key: value” a line.",
    "config.too_big": "{where} is larger than {limit} bytes. Settings are short: check that it is the right file.",
    "config.yaml": "{where}, line {line}: {what}. Mend the line; YAML needs spaces, not tabs, and no key twice.",
    "config.unknown_key": "There is no setting “{key}” here. Check the spelling.",
    "config.unknown_key_near": "There is no setting “{key}” here. Did you mean “{nearest}”?",
    "config.invalid": "“{given}” does not fit: {what}.",
    "config.missing": "A value is needed here.",
    "config.greater_than": "“{given}” is too small: give a number above {gt}.",
    "config.greater_than_equal": "“{given}” is too small: give {ge} or more.",
    "config.less_than": "“{given}” is too large: give a number below {lt}.",
    "config.less_than_equal": "“{given}” is too large: give {le} or less.",
    "config.int_type": "“{given}” is not a whole number.",
    "config.int_parsing": "“{given}” is not a whole number.",
    "config.int_from_float": "“{given}” is not a whole number.",
    "config.int_parsing_size": "“{given}” is too large.",
    "config.float_type": "“{given}” is not a number. Write it like 0.0002 or 2e-4.",
    "config.float_parsing": "“{given}” is not a number. Write it like 0.0002 or 2e-4.",
    "config.finite_number": "“{given}” is not a finite number. Write it like 0.0002 or 2e-4.",
    "config.bool_type": "“{given}” is neither true nor false.",
    "config.bool_parsing": "“{given}” is neither true nor false.",
    "config.string_type": "“{given}” is not a text. Put it in quotes.",
    "config.string_too_short": "This is too short: {min_length} characters at least.",
    "config.string_too_long": "This is too long: {max_length} characters at most.",
    "config.string_pattern_mismatch": "“{given}” has characters that are not allowed here. Use letters, digits, spaces, . - _ and begin with a letter or a digit.",
    "config.list_type": "“{given}” is not a list. Write [a, b].",
    "config.too_short": "Choose at least {min_length}.",
    "config.too_long": "Choose {max_length} at most.",
    "config.literal_error": "“{given}” is not one of {expected}.",
    "config.model_type": "“{given}” is not a group of settings.",
    "config.model_attributes_type": "“{given}” is not a group of settings.",
    "config.union_tag_invalid": "There is no “{tag}” here. Choose one of: {expected_tags}.",
    "config.union_tag_not_found": "Say which kind is meant: kind: NAME.",
    "training.endless": "Neither epochs nor a step limit is given, so the run would have no end. Set one of them.",
    # workspace and runs
    "path.outside": "{path} lies outside the workspace {root}. Move it there, or start the board with --allow for its folder.",
    "path.missing": "There is no {path}. Check the spelling.",
    "path.not_writable": "{path} can't be written to. Choose another folder or change its permissions.",
    "path.not_empty": "{path} is not empty. Choose a new folder: nothing is ever overwritten.",
    "disk.full": "The disk of {path} has {free} free and {needed} are needed. Free some space or choose another disk.",
    "disk.write": "Nothing more can be written to {path}: the disk is full or a quota is reached. Free some space, then resume.",
    "run.unknown": "There is no run “{run}” in {root}. `tuneboard runs` lists them.",
    "run.active": "“{run}” is still running. Stop it first.",
    "run.complete": "“{run}” is already complete. Clone it to train on with other settings.",
    "run.not_training": "“{run}” is no training run.",
    "run.untuned": "“{run}” has no tuned weights yet. Wait until it is done, or choose another.",
    "run.changed": "The settings of “{run}” were changed after it began. Clone it to train with the new ones.",
    "run.folder_lost": "The folder of the run was moved or deleted while it ran.",
    "recipe.unknown": "There is no recipe “{recipe}”. Choose one of: {known}.",
    # models and adapters
    "model.is_adapter": "{folder} holds an adapter, not a whole model. Choose its base as the model and the adapter as what is tuned.",
    "model.no_config": "{folder} has no config.json, so it is no model. Choose the folder that holds config.json and the weights.",
    "model.bad_json": "{file} can't be read: {what}. Fetch the file again.",
    "model.no_type": "config.json in {folder} names no model_type. Choose a model in the format of transformers.",
    "model.no_weights": "{folder} has no weights. Put model.safetensors into it, or fetch the model again.",
    "model.unsafe": "{folder} has its weights only as {file}, a format that can run code when it is opened. Convert them to safetensors first.",
    "model.bad_weights": "{file} is broken: {what}. Fetch it again: the download may have been cut off.",
    "model.lfs_pointer": "{file} is a Git LFS pointer, not the file itself. Run git lfs pull in its folder.",
    "model.shard_missing": "{folder} lacks {shard}, one of the files of its weights. Fetch the model again.",
    "model.shard_outside": "{file} points to weights at “{shard}”. Only safetensors files in the model's own folder are read: fetch the model from a source you trust.",
    "model.remote_code": "The model in {folder} wants to run code of its own (auto_map), which is never allowed. Choose a model that transformers knows.",
    "model.remote_kernel": "The model in {folder} wants to fetch attention code from the hub (“{given}”), which is never allowed. Remove _attn_implementation from its config.json.",
    "model.no_tokenizer": "{folder} has no tokenizer. Put tokenizer.json and tokenizer_config.json of the model into it.",
    "model.bad_tokenizer": "The tokenizer in {folder} can't be loaded: {what}. Fetch the model again.",
    "model.no_end_token": "The tokenizer in {folder} names no end token (eos_token), so no answer would ever end. Add it to tokenizer_config.json.",
    "model.template_default": "{folder} has no chat template, so it is a base model: ChatML is used. Train it for some steps before you chat with it.",
    "model.not_on_hub": "“{model}” is neither a folder here nor a model on the hub. Check the spelling.",
    "model.gated": "“{model}” is shown only to those who accepted its licence. Accept it on the hub and set HF_TOKEN.",
    "model.no_revision": "“{model}” has no revision “{revision}”. Leave it empty or check the spelling.",
    "model.offline": "“{model}” is not here and the hub can't be reached: {what}. Check the connection, or give a folder.",
    "model.attention": "{given} is not available on this machine. Choose auto.",
    "model.unusable": "The model in {folder} can't be loaded: {what}. Choose another, or update transformers if it is newer than this version.",
    "model.weights_missing": "{folder} lacks weights that its config.json asks for: {names}. Fetch the model again; random numbers would stand in their place.",
    "model.weights_unknown": "{folder} has weights that its config.json has no place for: {names}. Check that config.json belongs to these weights.",
    "model.weights_differ": "{folder} has weights of another shape than its config.json says: {names}. Check that config.json belongs to these weights.",
    "model.vocabulary": "The tokenizer knows {tokens} tokens, the model only {rows}. Check that the tokenizer belongs to this model.",
    "adapter.no_config": "{folder} has neither config.json nor adapter_config.json, so it is no model and no adapter. Choose the folder that a run has written.",
    "adapter.unknown_type": "“{given}” is no kind of adapter that can be used here. Known are: {known}.",
    "adapter.changes_base": "The adapter in {folder} begins with “{start}”, which changes the base itself, and was not converted. Save it as plain LoRA first.",
    "adapter.no_weights": "{folder} has no adapter_model.safetensors. Choose the folder that a run has written.",
    "adapter.unsafe": "{folder} has its weights only as {file}, a format that can run code when it is opened. Convert them to safetensors first.",
    "adapter.rank": "adapter_config.json says rank {rank}, the weights have {stored}. Check that both belong together.",
    "adapter.no_match": "No weight of the adapter in {folder} has a place in this model. It was trained on {base}: choose that as the base.",
    "adapter.partial": "Weights of the adapter in {folder} and places for them in this model differ: {names}. It was trained on {base}: choose that as the base.",
    "adapter.shapes": "The adapter in {folder} does not fit this model: {names}. It was trained on {base}: choose that as the base.",
    "adapter.not_finite": "The adapter in {folder} holds numbers that are not finite: {names}. The training went wrong: use an earlier checkpoint.",
    # what ended a run
    "end.killed": "The run was killed by signal {signal}. Resume it: the last checkpoint is whole.",
    "end.killed_memory": "The system killed the run, most likely for want of memory (peak {peak}). Lower the batch size or the cutoff length, then resume.",
    "end.lost": "The run ended without a word: the machine was switched off or its supervisor was killed. Resume it: the last checkpoint is whole.",
    "memory.device": "The device has no memory left. Lower the batch size or the cutoff length, or turn on gradient checkpointing.",
    "memory.host": "The machine has no memory left. Lower the batch size or the cutoff length, or close other programs.",
    "loss.not_finite": "The loss was not a finite number {count} times in a row, up to step {step}. Lower the learning rate or look for broken rows, then resume from the last good checkpoint.",
    "device.failed": "The device failed: {what}. Check the driver; resume when the device is back.",
    "device.none": "There is no {device} device on this machine. Choose auto or cpu.",
    "engine.failed": "The engine failed: {what}. console.log in the run's folder has the details.",
}


class _Known(dict[str, Any]):
    """Leaves a hole whose parameter is missing as it stands."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def english(code: str, params: Mapping[str, Any]) -> str:
    """Return the English text of a code; the code itself where it has none."""
    return MESSAGES.get(code, code).format_map(_Known(params))
