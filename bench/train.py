"""LoRA fine-tuning on instruction data, ours beside transformers' Trainer with peft: the same model, rows and steps.

`python bench/train.py [--rounds 3] [--steps 12] [--batch 8] [--kind lora] [--precision fp32] [--peer PYTHON]`:
makes a random Llama of 16.8 million weights, a tokenizer of 8,192 tokens, and rows as long as those of Alpaca; each
way trains in a process of its own, in turn (A B A B ...). Prints medians: real tokens a CPU second (from the second
step on, padding never counted), against the fp32 GEMM rate of the same run, peak memory, seconds to the first step
against those of the bare imports. --peer: the python of an environment with LLaMA-Factory, which joins the turns with
its defaults, gradient checkpointing among them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CUTOFF, ROWS, RATE = 512, 400, 1e-4
WEIGHTS = 13_631_488
"""Of the linear layers and the head: what a token is multiplied with."""
OURS = """
import sys, threading, time
from pathlib import Path
from core import config, events
from core.workspace import Context
class Timed(events.Writer):
    def write(self, type_, **fields):
        super().write(type_, **fields)
        if type_ == "step":
            print("STEP", time.time(), time.process_time(), fields["loss"], fields["tokens"], flush=True)
folder = Path(sys.argv[1])
job = config.load((folder / "run.yaml").read_text(), "run.yaml")
job.stage.train(job, Context(folder, folder.parents[1], Timed(folder), threading.Event()))
"""
PLAIN = """
import json, sys, time
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
model, data, out, steps, batch, cutoff, kind = sys.argv[1:8]
tokenizer = AutoTokenizer.from_pretrained(model)
class Rows:
    def __init__(self):
        self.rows = []
        for line in open(data):
            row = json.loads(line)
            asked = [{"role": "user", "content": row["instruction"]}]
            said = [*asked, {"role": "assistant", "content": row["output"]}]
            head = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
            ids = tokenizer.apply_chat_template(said, return_dict=False)[: int(cutoff)]
            self.rows.append({"input_ids": ids, "labels": ([-100] * len(head) + ids[len(head):])[: int(cutoff)]})
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, i):
        return self.rows[i]
def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    pad = lambda name, value: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": torch.tensor(mask)}
class Tell(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            print("STEP", time.time(), time.process_time(), logs["loss"], state.num_input_tokens_seen, flush=True)
net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
if kind == "lora":
    net = get_peft_model(net, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
args = TrainingArguments(out, per_device_train_batch_size=int(batch), max_steps=int(steps), learning_rate=RATE_,
    logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, seed=42, disable_tqdm=True,
    include_num_input_tokens_seen="non_padding")
Trainer(net, args, train_dataset=Rows(), data_collator=collate, callbacks=[Tell()]).train()
""".replace("RATE_", str(RATE))
PEER = """
import sys, time
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback
model, data, out, steps, batch, cutoff, kind = sys.argv[1:8]
class Tell(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            print("STEP", time.time(), time.process_time(), logs["loss"], state.num_input_tokens_seen, flush=True)
given = dict(model_name_or_path=model, stage="sft", do_train=True, finetuning_type=kind, dataset="rows",
    dataset_dir=data, template="chatml", cutoff_len=int(cutoff), output_dir=out, per_device_train_batch_size=int(batch),
    max_steps=int(steps), learning_rate=RATE_, logging_steps=1, save_strategy="no", report_to="none", seed=42,
    include_num_input_tokens_seen="non_padding", preprocessing_num_workers=1, use_cpu=True)
if kind == "lora":
    given |= dict(lora_rank=8, lora_alpha=16, lora_target="all")
run_exp(args=given, callbacks=[Tell()])
""".replace("RATE_", str(RATE))
IMPORTS = "import torch, peft; from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer"


def make(folder: Path) -> tuple[Path, Path]:
    """Make model and data; return where they are."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlucmfwygpb", k=chance.randint(2, 9))) for _ in range(6000)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=8192, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    bpe.train_from_iterator([" ".join(words)] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.chat_template = (ROOT / "core/templates/chatml.jinja").read_text()
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
                        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=2048)  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder / "model")
    (folder / "data").mkdir()

    # lengths of Alpaca: half the questions have less than 20 words, answers have 45 in the mean and a long tail
    def text(mean: float, spread: float) -> str:
        return " ".join(chance.choices(words, k=1 + int(chance.lognormvariate(mean, spread))))

    rows = [{"instruction": text(2.9, 0.5), "input": "", "output": text(3.3, 1.0)} for _ in range(ROWS)]
    (folder / "data/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data/dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    return folder / "model", folder / "data"


def run(command: list[str], home: Path) -> dict[str, Any]:
    """Run a process; return what it took. Its steps are lines `STEP wall cpu loss tokens`."""
    began = time.time()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    steps = [list(map(float, line.split()[1:])) for line in process.stdout.splitlines() if line.startswith("STEP")]
    if process.returncode or len(steps) < 2:
        sys.exit(f"failed:\n{process.stdout[-2000:]}{process.stderr[-3000:]}")
    first, last = steps[0], steps[-1]
    return {"rate": (last[3] - first[3]) / (last[1] - first[1]), "first": first[0] - began,
            "losses": [step[2] for step in steps]}  # fmt: skip


def peak(command: list[str], home: Path) -> tuple[dict[str, Any], int]:
    """Return what `run` does with the peak of resident bytes, of a shell that has no other child."""
    script = (
        f"import json, resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from pathlib import Path\nimport train\nfound = train.run({command!r}, Path({str(home)!r}))\n"
        "print(json.dumps([found, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if told.returncode:
        sys.exit(told.stdout + told.stderr)
    return tuple(json.loads(told.stdout.splitlines()[-1]))


def ours(home: Path, model: Path, data: Path, given: argparse.Namespace, number: int) -> list[str]:
    """Return the command of our way, in a run folder of its own."""
    from core import config

    folder = home / "runs" / f"ours{number}"
    folder.mkdir(parents=True)
    job = config.resolve(
        {
            "model": {"path": str(model), "precision": given.precision},
            "data": {"folder": str(data), "train": ["rows.jsonl"], "eval_share": 0, "cutoff": CUTOFF},
            "training": {"max_steps": given.steps, "batch_size": given.batch, "warmup": 0, "schedule": "linear",
                         "group_by_length": False},
            "tuner": {"kind": "lora", "rank": 8, "alpha": 16.0} if given.kind == "lora" else {"kind": given.kind},
            "optimizer": {"learning_rate": RATE},
            "saving": {"every": 10**6},
            "hardware": {"device": "cpu", "threads": 1},
        }
    )  # fmt: skip
    (folder / "run.yaml").write_text(config.dump(job))
    return [sys.executable, "-c", OURS, str(folder)]


def gemm() -> float:
    """Return fp32 FLOP a CPU second of multiplications in the shapes of the model."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(1024, 384), torch.randn(384, 1024)
    a @ b
    began = time.process_time()
    for _ in range(200):
        a @ b
    return 200 * 2 * a.shape[0] * a.shape[1] * b.shape[1] / (time.process_time() - began)


def seconds(code: str) -> float:
    began = time.time()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kind", choices=("lora", "full"), default="lora")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32")
    parser.add_argument("--peer", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        model, data = make(home)
        found: dict[str, list[tuple[dict[str, Any], int]]] = {"ours": [], "plain": []}
        if given.peer:
            found["peer"] = []
        rates, imports = [], []
        for number in range(given.rounds):
            rates.append(gemm())
            imports.append(seconds(IMPORTS))
            found["ours"].append(peak(ours(home, model, data, given, number), home))
            shape = [str(given.steps), str(given.batch), str(CUTOFF), given.kind]
            plain = [str(model), str(data / "rows.jsonl"), str(home / "plain"), *shape]
            found["plain"].append(peak([sys.executable, "-c", PLAIN, *plain], home))
            if given.peer:
                peer = [str(model), str(data), str(home / f"peer-{number}"), *shape]
                found["peer"].append(peak([given.peer, "-c", PEER, *peer], home))
        tell(found, statistics.median(rates), statistics.median(imports), given)


def tell(found: dict[str, Any], rate: float, imports: float, given: argparse.Namespace) -> None:
    """Print the medians and ratios."""
    middle = {name: {"rate": statistics.median(one["rate"] for one, _ in runs),
                     "first": statistics.median(one["first"] for one, _ in runs),
                     "peak": statistics.median(bytes_ for _, bytes_ in runs)}
              for name, runs in found.items()}  # fmt: skip
    # forward and the gradient of inputs; of weights only where they learn
    flop = (4 if given.kind == "lora" else 6) * WEIGHTS
    print(f"{given.kind}, {given.precision}, batch {given.batch}, {given.steps} steps, {given.rounds} rounds, 1 thread")
    for name, one in middle.items():
        print(f"{name:6} {one['rate']:8,.0f} real tokens/CPU s   {one['rate'] * flop / rate:5.2f} of fp32 GEMM   "
              f"peak {one['peak'] / 2**20:7,.0f} MiB   first step after {one['first']:5.1f} s")  # fmt: skip
    mine = middle.pop("ours")
    for name, theirs in middle.items():
        print(f"tokens a CPU second: {mine['rate'] / theirs['rate']:.2f} of {name}   "
              f"peak: {mine['peak'] / theirs['peak']:.2f} of {name}")  # fmt: skip
    print(f"first step: {mine['first'] / imports:.2f} of the imports ({imports:.1f} s)")
    losses = [[round(loss, 3) for loss in runs[0][0]["losses"][:3]] for runs in found.values()]
    print("first losses (other rows are drawn):", *losses)


if __name__ == "__main__":
    main()
