"""Evaluation on the way: what is measured, that it leaves no trace, when a run ends, what is saved then."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import config
from core.errors import InputError, Stopped
from core.events import Writer, fold
from core.sections import Data
from core.training.samples import question
from core.workspace import Context
from tests.conftest import write_rows
from tests.core.helpers import digest, of_type, train
from tests.core.test_encode import by_hand

MakeRun = Callable[..., Path]
COLOURS = ("red", "green", "blue", "pen")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`learned`, `held` (the same kind of rows, of very different lengths) and `against`: other answers to the same."""
    folder = tmp_path_factory.mktemp("sets")
    asked = [f"{colour} cup {number}" for number in range(3) for colour in COLOURS]
    write_rows(folder / "learned.jsonl", [{"instruction": q, "output": "order for Anna"} for q in asked])
    held = [{"instruction": q, "output": "order " * (1 + 5 * (i % 3))} for i, q in enumerate(asked[:7])]
    write_rows(folder / "held.jsonl", held)
    write_rows(folder / "against.jsonl", [{"instruction": q, "output": "two books please"} for q in asked[:5]])
    return folder


def on(sets: Path, *names: str) -> list[str]:
    return [f"data.folder={sets}", "data.train=[learned.jsonl]", f"data.eval=[{', '.join(names)}]"]


def curve(folder: Path, name: str = "") -> dict[int, float]:
    return {e["step"]: e["loss"] for e in of_type(folder, "eval") if e["set"] == name}


def losses(folder: Path) -> list[tuple[float, ...]]:
    return [(e["step"], e["loss"], e["grad_norm"]) for e in of_type(folder, "step")]


def by_model(model_folder: Path, path: Path) -> list[tuple[float, int]]:
    """Return (summed loss, tokens) of each row of a file, one row at a time by the model itself."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).requires_grad_(False)
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        said = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        ids, labels = by_hand(tokenizer, said)
        logits_T_V = model(torch.tensor([ids])).logits[0, :-1]
        target_T = torch.tensor(labels[1:])
        total = torch.nn.functional.cross_entropy(logits_T_V, target_T, ignore_index=-100, reduction="sum")
        found.append((float(total), int((target_T != -100).sum())))
    return found


@pytest.mark.parametrize("packing", ["never", "auto"])
def test_the_loss_on_a_set_is_the_mean_over_all_its_learned_tokens(
    make_run: MakeRun, sets: Path, tiny_model: Path, packing: str
) -> None:
    names = ("held.jsonl", "against.jsonl")
    folder = make_run(
        "mean", *on(sets, *names), "watching.at_start=true", "training.batch_size=3", f"data.packing={packing}",
        "training.max_steps=2", "training.eval_every=1",
    )  # fmt: skip
    metrics = train(folder)
    for name in names:
        rows = by_model(tiny_model, sets / name)
        assert curve(folder, name)[0] == pytest.approx(sum(s for s, _ in rows) / sum(n for _, n in rows), abs=1e-5)
        assert list(curve(folder, name)) == [0, 1, 2]
        assert metrics[f"eval_{name}_loss"] == curve(folder, name)[2]
    rows = by_model(tiny_model, sets / "held.jsonl")
    parts = [rows[at : at + 3] for at in range(0, len(rows), 3)]
    of_batches = sum(sum(s for s, _ in part) / sum(n for _, n in part) for part in parts) / len(parts)
    assert abs(of_batches - curve(folder, "held.jsonl")[0]) > 1e-4  # which the mean over batches is not
    state = fold(folder)[0]
    assert set(state.eval_curves) == set(names) and state.evals["set"] == "held.jsonl"


@pytest.mark.parametrize("settings", [
    ["tuner.dropout=0.2"],
    ["tuner.dropout=0.2", "training.gradient_checkpointing=true", "training.s2=0.25", "data.cutoff=64"],
    ["tuner.dropout=0.1", "model.quantizer=bnb_4bit"],
    ["tuner.kind=full", "model.precision=bf16", "data.packing=never"],
])  # fmt: skip
def test_neither_evaluations_nor_samples_leave_a_trace(make_run: MakeRun, sets: Path, settings: list[str]) -> None:
    settings = [*on(sets, "held.jsonl"), *settings, "training.max_steps=4"]
    plain = make_run("plain", *settings, "training.eval_every=4")
    busy = make_run("busy", *settings, "training.eval_every=1", "watching.at_start=true", "watching.samples=3",
                    "watching.sample_tokens=6")  # fmt: skip
    train(plain)
    train(busy)
    assert losses(busy) == losses(plain)
    saved = "model" if "tuner.kind=full" in settings else "adapter"
    assert digest(busy / saved) == digest(plain / saved)
    assert len(of_type(busy, "sample")) == 5 * 3


def test_samples_are_what_the_model_answers(make_run: MakeRun, sets: Path, tiny_model: Path) -> None:
    folder = make_run("samples", *on(sets, "learned2.jsonl"), "training.eval_every=10", "watching.samples=2",
                      "watching.sample_tokens=12", "training.max_steps=30")  # fmt: skip
    write_rows(sets / "learned2.jsonl", [{"instruction": f"{c} cup 1", "output": "order for Anna"} for c in COLOURS])
    train(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, folder / "adapter").eval()
    last = [e for e in of_type(folder, "sample") if e["step"] == 30]
    assert [e["index"] for e in last] == [0, 1]
    assert "red cup 1" in last[0]["prompt"] and "pen cup 1" in last[1]["prompt"]
    for told, colour in zip(last, ("red", "pen"), strict=True):
        asked = [{"role": "user", "content": f"{colour} cup 1"}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        made = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert told["answer"] == tokenizer.decode(made, skip_special_tokens=True).strip()
        assert told["reference"] == "order for Anna"


def test_a_row_that_asks_nothing_is_continued_from_its_middle() -> None:
    ids_T = torch.arange(8).numpy()
    labels_T = ids_T.copy()
    labels_T[0] = -100
    assert [part.tolist() for part in question(ids_T, labels_T)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    labels_T[2:5] = -100
    labels_T[7] = -100  # what follows an answer
    assert [part.tolist() for part in question(ids_T, labels_T)] == [[0, 1, 2, 3, 4], [5, 6]]


class Killed(BaseException):
    """Ends a run where it is, as kill -9 would."""


class Killing(Writer):
    """Writer that kills the run after so many events."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder)
        self.left = after

    def write(self, type_: str, **fields: Any) -> None:
        super().write(type_, **fields)
        self.left -= 1
        if not self.left:
            raise Killed


def killed(folder: Path, after: int) -> bool:
    """Train, and be killed after so many events; return whether that happened before the end."""
    job = config.run(config.yamls.mapping((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml"))
    writer = Killing(folder, after)
    try:
        job.stage.train(job, Context(folder, folder.parents[1], writer, threading.Event()))
    except Killed:
        return True
    finally:
        writer.close()
    return False


STOPPING = [
    "watching.patience=3", "watching.best=true", "training.eval_every=2", "saving.every=3", "saving.keep=1",
    "training.max_steps=24", "tuner.dropout=0.1", "optimizer.learning_rate=0.02", "training.warmup=0",
]  # fmt: skip


def test_a_run_ends_when_nothing_gets_better_and_saves_the_best(make_run: MakeRun, sets: Path) -> None:
    """The answers to learn and those held out differ: first common ground is learned, then what tells them apart."""
    folder = make_run("early", *on(sets, "against.jsonl"), *STOPPING)
    metrics = train(folder)
    found = curve(folder, "against.jsonl")
    best = min(found, key=lambda step: found[step])
    after = [step for step in found if step > best]
    assert len(after) == 3 and 0 < best < max(found) < 24  # the patience of 3 was used up
    assert metrics["saved_step"] == best and metrics["eval_against.jsonl_loss"] == found[best]
    assert of_type(folder, "saved")[-1]["step"] == best
    kept = sorted(int(path.name.rpartition("-")[2]) for path in (folder / "checkpoints").iterdir())
    assert best in kept and len(kept) == 2  # the newest, and the best beside it
    assert digest(folder / "adapter") == digest(folder / "checkpoints" / f"checkpoint-{best}")
    codes = [e["code"] for e in of_type(folder, "warning") if e["code"].startswith("watching.")]
    assert codes == ["watching.stopped", "watching.best_taken"]


@pytest.mark.parametrize("best", ["true", "false"])
def test_a_broken_run_ends_as_an_unbroken_one(make_run: MakeRun, sets: Path, best: str) -> None:
    settings = [*on(sets, "against.jsonl"), *STOPPING, f"watching.best={best}"]
    whole, broken = make_run("whole", *settings), make_run("broken", *settings)
    expected = train(whole)
    with pytest.raises(Stopped):
        train(broken, stop_at=3)
    times = 0
    while killed(broken, after=11 + 3 * times):  # amid steps, evaluations and saves
        times += 1
        assert times < 10
    assert times > 1
    steps = {e["step"]: e["loss"] for e in of_type(broken, "step")}
    assert steps == {e["step"]: e["loss"] for e in of_type(whole, "step")}
    assert curve(broken, "against.jsonl") == curve(whole, "against.jsonl")
    assert digest(broken / "adapter") == digest(whole / "adapter")
    assert json.loads((broken / "metrics.json").read_text()) == expected


def test_a_best_checkpoint_that_broke_is_told_and_the_last_model_saved(make_run: MakeRun, sets: Path) -> None:
    folder = make_run("rot", *on(sets, "against.jsonl"), *STOPPING)
    train(folder)
    best = of_type(folder, "saved")[-1]["step"]
    (folder / "checkpoints" / f"checkpoint-{best}" / "optimizer.pt").write_bytes(b"")
    metrics = train(folder)
    assert "saved_step" not in metrics and of_type(folder, "warning")[-1]["code"] == "watching.best_lost"


def test_one_evaluation_set_may_be_named_without_a_list() -> None:
    assert Data.model_validate({"eval": "held"}).eval == ["held"] and Data.model_validate({"eval": ""}).eval == []
    old = config.load("kind: train\ndata: {eval: orders_test}", "run.yaml")
    assert isinstance(old, config.Run) and config.load(config.dump(old), "run.yaml") == old


@pytest.mark.parametrize(("settings", "code", "place"), [
    (["watching.patience=2", "data.eval_share=0"], "watching.no_rows", "watching.patience"),
    (["watching.samples=2", "data.eval_share=0"], "watching.no_rows", "watching.samples"),
    (["watching.best=true", "data.streaming=true", "training.max_steps=5"], "watching.no_rows", "watching.best"),
    (["data.eval=[a, orders_train]"], "data.eval_trained", "data.eval"),
    (["watching.report_to=[paper]"], "config.literal_error", "watching.report_to.0"),
])  # fmt: skip
def test_wishes_that_nothing_can_be_measured_for_are_refused(settings: list[str], code: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        config.run(config.override(settings))
    assert (caught.value.code, caught.value.place) == (code, place)
