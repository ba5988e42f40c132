"""Tiny real things: a two-layer model with its tokenizer, a data folder, a workspace, a worker process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from core import config

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
WORDS = "red green blue pen book cup order for Anna Paul Mia please two three four turn this into JSON".split()  # noqa: SIM905


class Folders(LoadScopeScheduling):
    """One process drives browsers and one kills runs, each needs a core; the other tests go wherever there is time."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.split("/")[1]
        return folder if folder in ("browser", "faults") else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Folders:
    return Folders(config, log)  # xdist's own groups are not seen by pytest 9.2


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, hidden size 64, a byte-level BPE tokenizer, a chat template with generation marks."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model") / "tiny"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the sets `orders` (alpaca, 40 rows) and `chats` (openai, 8 rows)."""
    folder = tmp_path_factory.mktemp("data")
    names, colours, things = WORDS[7:10], WORDS[:3], WORDS[3:6]
    orders = [
        {"instruction": "Turn this into JSON.", "input": f"{colour} {thing} for {name} " * (1 + i % 3),
         "output": json.dumps({"item": thing, "color": colour, "to": name})}
        for i, (name, colour, thing) in enumerate((n, c, t) for n in names for c in colours for t in things)
    ]  # fmt: skip
    orders = (orders * 2)[:40]
    chats = [
        {"messages": [{"role": "user", "content": f"two {t}"}, {"role": "assistant", "content": f"{t} {t}"},
                      {"role": "user", "content": "please"}, {"role": "assistant", "content": t}]}
        for t in (things * 3)[:8]
    ]  # fmt: skip
    write_rows(folder / "orders.jsonl", orders)
    write_rows(folder / "chats.jsonl", chats)
    info = {"orders": {"file_name": "orders.jsonl"}, "chats": {"file_name": "chats.jsonl", "formatting": "openai"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace."""
    folder = tmp_path / "workspace"
    (folder / "runs").mkdir(parents=True)
    return folder


@pytest.fixture
def make_run(tiny_model: Path, tiny_data: Path, workspace: Path) -> Callable[..., Path]:
    """`make_run("name", "tuner.rank=4", ...)`: a run folder with a run.yaml of the tiny model and data."""

    def make(name: str, *settings: str) -> Path:
        return new_run(workspace / "runs" / name, tiny_model, tiny_data, *settings)

    return make


def new_run(folder: Path, model: Path, data: Path, *settings: str) -> Path:
    """Make a run folder: four rows a batch, ten steps, everything logged, one thread."""
    base: dict[str, Any] = {
        "model": {"path": str(model), "precision": "fp32"},  # auto would depend on the machine
        "data": {"folder": str(data), "train": ["orders"], "eval_share": 0.1},
        "training": {"max_steps": 10, "batch_size": 4, "eval_every": 5},
        "tuner": {"kind": "lora", "rank": 4, "alpha": 8.0},
        "optimizer": {"learning_rate": 0.01},
        "saving": {"every": 4},
        "hardware": {"device": "cpu", "threads": 1},
    }
    folder.mkdir(parents=True)
    job = config.resolve(base, config.override(settings))
    (folder / "run.yaml").write_text(config.dump(job), encoding="utf-8")
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def launch_worker(folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start `python -m core.worker` on a run folder; its output goes to console.log."""
    with (folder / "console.log").open("ab") as log:
        command = [sys.executable, "-m", "core.worker", str(folder)]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)


def copy_of(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))
