"""Rows to packed tokens: ours against `datasets.map` with batched calls, and against encoding turn by turn.

`python bench/data.py [--rows 50000] [--rounds 3]`: reads, aligns, renders, tokenizes, masks and packs instruction rows
(real ones if the folder of LLaMA-Factory's examples is beside the repository, else generated), A B C A B C ..., and
prints the medians of the CPU seconds and their ratios. The peers do less: no check of rows and no packing, the first
no mask either. The ids of all three are compared on every row.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
REAL = ROOT.parent / "shared" / "data" / "llamafactory" / "alpaca_en_demo.json"
CUTOFF = 1024
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How large models of today split words."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rows(count: int) -> list[dict[str, str]]:
    """Instruction rows, no two the same."""
    if REAL.exists():
        base = json.loads(REAL.read_text(encoding="utf-8"))
    else:
        chance = random.Random(0)
        words = [f"{chance.choice('bcdfglmnprst')}{chance.choice('aeiou')}{chance.randrange(300)}" for _ in range(5000)]
        base = [{"instruction": " ".join(chance.choices(words, k=12)), "input": "",
                 "output": " ".join(chance.choices(words, k=110))} for _ in range(1000)]  # fmt: skip
    return [{**base[i % len(base)], "instruction": f"{base[i % len(base)]['instruction']} ({i})"} for i in range(count)]


def make_tokenizer(folder: Path, texts: list[str]) -> None:
    """Train a byte-level BPE of 32,000 tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=32_000, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)


def ours(folder: Path, tokenizer: Any) -> tuple[list[Any], float]:
    from core.data.batch import Loader
    from core.data.describe import find
    from core.data.pack import packed
    from core.sections import Data

    data = Data(folder=str(folder), train=["rows.jsonl"], cutoff=CUTOFF)
    loader = Loader(data, folder, tokenizer)
    encoded, _ = loader._encode(find(folder, "rows.jsonl", ""), "", loader.encoder())
    packs = packed(encoded, CUTOFF)
    fill = float(encoded.lengths_B.sum() / (len(packs) * CUTOFF))
    return [encoded.ids_N[a:b] for a, b in zip(encoded.starts_B1, encoded.starts_B1[1:], strict=False)], fill


def messages_of(row: dict[str, str]) -> list[dict[str, str]]:
    asked = "\n".join(filter(None, (row["instruction"], row["input"])))
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]


def mapped(folder: Path, tokenizer: Any) -> Any:
    """datasets.map, batched: rendered in one call, tokenized in one call."""
    import datasets

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        keys = list(batch)
        talks = [messages_of(dict(zip(keys, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        texts = tokenizer.apply_chat_template(talks, tokenize=False)
        ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=CUTOFF)["input_ids"]
        return {"input_ids": ids}

    table = datasets.Dataset.from_json(str(folder / "rows.jsonl"), cache_dir=str(folder / "hf"), keep_in_memory=True)
    done = table.map(encode, batched=True, remove_columns=table.column_names, load_from_cache_file=False,
                     keep_in_memory=True)  # fmt: skip
    return done


def turn_by_turn(folder: Path, tokenizer: Any) -> Any:
    """In LLaMA-Factory's way: one map brings each row to a standard form, another encodes each turn by its own call."""
    import datasets

    def align(row: dict[str, str]) -> dict[str, Any]:
        user, assistant = messages_of(row)
        return {"prompt": [user], "response": [assistant], "system": "", "tools": "", "images": None}

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        made: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for prompt, response in zip(batch["prompt"], batch["response"], strict=True):
            head = f"<|im_start|>user\n{prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
            asked = tokenizer.encode(head, add_special_tokens=False)
            told = tokenizer.encode(response[0]["content"] + "<|im_end|>", add_special_tokens=False)
            rest = tokenizer.encode("\n", add_special_tokens=False)
            ids = (asked + told + rest)[:CUTOFF]
            made["input_ids"].append(ids)
            made["attention_mask"].append([1] * len(ids))
            made["labels"].append(([-100] * len(asked) + told + [-100] * len(rest))[:CUTOFF])
        return made

    table = datasets.Dataset.from_json(str(folder / "rows.jsonl"), cache_dir=str(folder / "hf"), keep_in_memory=True)
    keep = {"load_from_cache_file": False, "keep_in_memory": True}
    aligned = table.map(align, remove_columns=table.column_names, **keep)
    return aligned.map(encode, batched=True, remove_columns=aligned.column_names, **keep)


def speed(count: int, rounds: int) -> None:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = rows(count)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        make_tokenizer(folder / "tokenizer", [row["output"] for row in made[:1000]])
        seconds: dict[str, list[float]] = {"ours": [], "datasets.map": [], "turn by turn": []}
        ids: dict[str, Any] = {}
        fill = 0.0
        for turn in range(rounds + 1):  # the first warms up: imports, caches
            for name, way in (("ours", ours), ("datasets.map", mapped), ("turn by turn", turn_by_turn)):
                tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
                begin = time.process_time()
                found = way(folder, tokenizer)
                if turn:
                    seconds[name].append(time.process_time() - begin)
                ids[name], fill = found if name == "ours" else (found, fill)
        ids |= {name: ids[name]["input_ids"] for name in ids if name != "ours"}
        equal = sum(list(a) == list(b) == list(c) for a, b, c in zip(*ids.values(), strict=True))
        tokens = sum(len(row) for row in ids["ours"])
    print(f"{count} rows, {tokens} tokens, packs {fill:.4f} full; ids equal on {equal} of {count} rows")
    for name, taken in seconds.items():
        middle = median(taken)
        ratio = middle / median(seconds["ours"])
        print(f"{name:13} {middle:7.2f} CPU s  {count / middle:8.0f} rows/s  {ratio:.2f} x ours")
    assert equal == count


def memory() -> None:
    """Stream a JSONL file of 1 GB, and look at its first page."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "big.jsonl"
        line = json.dumps({"instruction": "q" * 200, "output": "a" * 800}) + "\n"
        with path.open("w") as file:
            for _ in range((1 << 30) // (len(line) * 1000)):
                file.write(line * 1000)
        code = (
            "import sys, time; from pathlib import Path; from core.data.describe import find;"
            "from core.data.rows import examples; from core.data.inspect import page;"
            "import psutil; rss = psutil.Process().memory_info; folder = Path(sys.argv[1]);"
            "before = rss().rss; t = time.time();"
            "page(find(folder, 'big.jsonl', ''), folder); first = time.time() - t; t = time.time();"
            "n = sum(1 for _ in examples(find(folder, 'big.jsonl', ''), folder, ''));"
            "print(n, first, time.time() - t, (rss().rss - before) / (1 << 20))"
        )
        said = subprocess.run([sys.executable, "-c", code, place], cwd=ROOT, capture_output=True, text=True, check=True)
        count, first, taken, grown = said.stdout.split()
        print(f"1 GB of JSONL: first page {float(first):.2f} s; {count} rows checked in {float(taken):.1f} s, "
              f"memory grew by {float(grown):.0f} MiB")  # fmt: skip


def looking() -> None:
    """The complexity card of 10,000 rows and the report of 50,000."""
    from core.data.card import card
    from core.data.report import report
    from core.formats import Line
    from core.formats.alpaca import Alpaca

    made = [Alpaca().row(dict(row), Line("", "", i)) for i, row in enumerate(rows(50_000), 1)]
    begin = time.perf_counter()
    card(made[:10_000])
    middle = time.perf_counter()
    found = report(enumerate(made, 1))
    end = time.perf_counter()
    near = sum(finding.count for finding in found["findings"] if finding.code == "report.near_duplicate")
    print(f"card of 10,000 rows {middle - begin:.2f} s; report of 50,000 rows {end - middle:.1f} s "
          f"({near} near duplicates); peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    speed(asked.rows, asked.rounds)
    memory()
    looking()
