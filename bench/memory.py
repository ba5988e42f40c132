"""Planned against measured memory of training runs, and what loading takes.

`python bench/memory.py [--type llama] [--weights 80] [--only lora full]`: makes a random model of about so many million
weights and rows that are all as long as the cutoff, trains three steps in each way in a process of its own, and prints
the peak of its resident memory beside the plan's, and the tokens a second of the last step. On a GPU the peak is that
of the allocator, without what the plan has for the libraries. Then the peak of loading beside the size of the file, the
bytes of a QLoRA base, the time of a plan. `--shape gemma-2b`, `llama-2-7b` or `llama-2-13b`: the rows of Table 4 of
arXiv 2403.13372 instead, on a model of that shape.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CUTOFF, BATCH, STEPS = 512, 4, 3
WAYS: dict[str, list[str]] = {
    "lora": [],
    "lora, batch 8": ["training.batch_size=8"],
    "lora, fp32": ["model.precision=fp32"],
    "lora, checkpointing, batch 16": ["training.gradient_checkpointing=true", "training.batch_size=16"],
    "dora": ["tuner.dora=true"],
    "freeze": ["tuner.kind=freeze"],
    "full": ["tuner.kind=full"],
    "full, checkpointing": ["tuner.kind=full", "training.gradient_checkpointing=true"],
    "full, fp32": ["tuner.kind=full", "model.precision=fp32"],
    "qlora": ["model.quantizer.kind=bnb_4bit"],
    "8 bit": ["model.quantizer.kind=bnb_8bit"],
    "experts": ["tuner.experts=true"],
    "eager": ["model.attention=eager"],
}
PAPER = ["training.batch_size=1", "training.gradient_checkpointing=true", "model.precision=pure_bf16"]
TABLE_4: dict[str, list[str]] = {
    "full": ["tuner.kind=full", "optimizer.variant=8bit"],
    "freeze": ["tuner.kind=freeze", "tuner.layers=3", "optimizer.variant=8bit"],
    "galore": ["tuner.kind=full", "optimizer.kind=galore", "optimizer.rank=128", "optimizer.scale=2"],
    "lora": ["tuner.rank=128", "tuner.alpha=256", "optimizer.variant=8bit"],
    "qlora": ["tuner.rank=128", "tuner.alpha=256", "optimizer.variant=8bit", "model.quantizer.kind=bnb_4bit"],
}
"""Table 4 of the paper: a batch of 512 tokens, checkpointing, 8 bit AdamW."""
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "gemma-2b": ("gemma", {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "head_dim": 256,
                           "num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 256_000}),
    "llama-2-7b": ("llama", {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                             "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32_000}),
    "llama-2-13b": ("llama", {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                              "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32_000}),
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "qwen3_moe": {"num_key_value_heads": 4, "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 512},
}  # fmt: skip
"""What else the config of a type is told."""
LOAD = """
import re, sys
from pathlib import Path
import transformers.models.llama.modeling_llama
from core.models.loading import load_model
from core.sections import Hardware, Model
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
before = peak()
model = load_model(Model(path=sys.argv[1]), Path("."), Hardware(device="cpu"))
sum(float(weight.sum()) for weight in model.parameters())  # read once: the files are mapped
print(peak() - before)
"""
BYTES = """
import sys
from pathlib import Path
from core.models.loading import load_model
from core.sections import Hardware, Model
settings = Model(path=sys.argv[1], quantizer={"kind": "bnb_4bit"})
model = load_model(settings, Path("."), Hardware(device="cpu"), training=True)
held = numbers = 0
for module in model.modules():
    if type(module).__name__ == "Linear4bit":
        state = module.weight.quant_state
        held += module.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
        numbers += module.in_features * module.out_features
print(held / numbers)
"""


def make(workspace: Path, kind: str, told: dict[str, Any]) -> None:
    """Write a random model with the demo's tokenizer, and rows of numbers. told: its shape, where not the usual one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from core.workspace import ASSETS

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "demo" / "model")
    usual = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12,
             "vocab_size": -(-len(tokenizer) // 64) * 64} | MORE.get(kind, {})  # fmt: skip
    shape = AutoConfig.for_model(
        kind, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, **usual | told,
    )  # fmt: skip
    torch.manual_seed(0)
    large = "vocab_size" in told
    with torch.device("cuda" if large and torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16 if large else torch.float32)
    model.save_pretrained(workspace / "model")
    tokenizer.save_pretrained(workspace / "model")
    (workspace / "data").mkdir()
    with (workspace / "data" / "rows.jsonl").open("w") as rows:
        for i in range(200):
            output = " ".join(str(i * j % 97) for j in range(2 * CUTOFF))
            rows.write(json.dumps({"instruction": f"say {i}", "output": output}) + "\n")


def measured(workspace: Path, words: list[str]) -> tuple[int, int, float]:
    """Train; return (planned peak, measured peak, both in bytes, tokens a second of the last step)."""
    from core import config, forecast

    job = config.run(config.override([
        "model.path=model", "data.folder=data", "data.train=[rows.jsonl]", f"data.cutoff={CUTOFF}", "data.eval_share=0",
        f"training.batch_size={BATCH}", f"training.max_steps={STEPS}", "saving.every=1000", *words,
    ]))  # fmt: skip
    found = forecast.forecast(job, workspace)
    assert found
    settings = workspace / "run.yaml"
    settings.write_text(config.dump(job), encoding="utf-8")
    command = [sys.executable, "-m", "app.cli", "train", str(settings), "-w", str(workspace), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    folder = max((workspace / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    if done.returncode:
        raise SystemExit((folder / "console.log").read_text()[-2000:])
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    speed = [event for event in events if event["type"] == "step"][-1]["tokens_per_second"]
    if found.room.device == "cuda":
        return found.plan.peak - found.plan.runtime, max(event.get("memory", 0) for event in events), speed
    return found.plan.peak, json.loads((folder / "exit.json").read_text())["peak_bytes"], speed


def child(code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.split()[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--type", default="llama")
    parser.add_argument("--weights", type=int, default=80)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--only", nargs="*", default=[])
    given: Any = parser.parse_args()
    from core import config, forecast
    from core.models.room import room
    from core.sections import Hardware

    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        small = given.type, {"num_hidden_layers": max(2, round(given.weights / 6.3))}
        make(workspace, *SHAPES.get(given.shape, small))
        ways = {way: [*PAPER, *words] for way, words in TABLE_4.items()} if given.shape else WAYS
        size = sum(file.stat().st_size for file in (workspace / "model").glob("*.safetensors"))
        print(f"model of {size >> 20} MiB, {CUTOFF} tokens a row, on {room(Hardware()).device}")
        for way, words in ways.items():
            if not given.only or way in given.only:
                planned, peak, speed = measured(workspace, words)
                print(f"{way:32} planned {planned >> 20:6} MiB  measured {peak >> 20:6} MiB  {planned / peak:.2f}  "
                      f"{speed:,.0f} tokens/s", flush=True)  # fmt: skip
        print(f"loading: {int(child(LOAD, str(workspace / 'model'))) / size:.2f} of the file")
        print(f"QLoRA base: {float(child(BYTES, str(workspace / 'model'))):.3f} bytes a linear weight")
        job = config.run({"model": {"path": str(workspace / "model")}})
        began = time.perf_counter()
        forecast.forecast(job, workspace)
        print(f"a plan, files unread before: {1000 * (time.perf_counter() - began):.0f} ms")


if __name__ == "__main__":
    main()
