"""Supervised fine-tuning: what it computes, what it writes, what it refuses, how it fails."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import checkpoints
from core.errors import InputError, NotFinite, Stopped
from core.events import fold
from core.sections import Training
from core.training.arguments import every, total_steps
from tests.conftest import copy_of, launch_worker, new_run, write_rows
from tests.core.helpers import of_type, train
from tests.core.test_encode import by_hand

MakeRun = Callable[..., Path]


def test_first_losses_are_cross_entropy_over_the_answers(make_run: MakeRun, tiny_model: Path, tiny_data: Path) -> None:
    """One step over all rows: the loss is the mean over every answer token, however they are padded and accumulated."""
    sets = {"one": ["training.batch_size=64"], "parts": ["training.batch_size=16", "training.accumulation=3"]}
    losses = {}
    for name, settings in sets.items():
        folder = make_run(name, *settings, "data.eval_share=0", "training.max_steps=1", "training.warmup=0")
        losses[name] = train(folder)["loss"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    total = count = 0.0
    for line in (tiny_data / "orders.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = {"role": "user", "content": row["instruction"] + "\n" + row["input"]}
        ids, labels = by_hand(tokenizer, [question, {"role": "assistant", "content": row["output"]}])
        logits_T_V = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for position, label in enumerate(labels[1:]):
            if label != -100:
                total, count = total - float(logits_T_V[position, label]), count + 1
    assert losses["one"] == pytest.approx(total / count, abs=1e-5)
    assert losses["parts"] == pytest.approx(total / count, abs=1e-5)


def test_a_run_writes_all_that_it_promises(make_run: MakeRun) -> None:
    settings = ("training.warmup=0.2", "training.schedule=linear", "training.log_every=2", "saving.keep=1")
    folder = make_run("all", *settings, "optimizer.learning_rate=0.01")
    metrics = train(folder)
    assert json.loads((folder / "metrics.json").read_text()) == metrics and metrics["step"] == 10
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    phases = [e["phase"] for e in of_type(folder, "phase")]
    assert phases == ["load_tokenizer", "load_data", "load_model", "train", "save"]
    facts = next(e for e in of_type(folder, "phase") if e["phase"] == "train")
    assert facts["total"] == 10 and facts["params"]["rows"] == 36 and facts["params"]["held_out"] == 4
    # two LoRA matrices of rank 4 beside the 7 linear modules of each of 2 layers: 4 * (in + out)
    assert facts["params"]["trainable"] == 2 * 4 * (2 * 128 + 2 * 96 + 3 * 192)
    steps = of_type(folder, "step")
    assert [e["step"] for e in steps] == [2, 4, 6, 8, 10]
    # two of ten steps of warm-up, then a straight line to zero; the rate of step n is set after n - 1 steps
    assert [e["lr"] for e in steps] == pytest.approx([0.005, 0.00875, 0.00625, 0.00375, 0.00125])
    assert all(e["tokens_per_second"] > 0 and e["memory"] > 1e8 and e["grad_norm"] > 0 for e in steps)
    assert [e["step"] for e in of_type(folder, "eval")] == [5, 10]
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["checkpoint-10"] and checkpoints.check(folder / "checkpoints" / "checkpoint-10") == ""
    manifest = json.loads((folder / "checkpoints/checkpoint-10/MANIFEST.json").read_text())
    assert manifest["step"] == 10 and {"optimizer.pt", "adapter_model.safetensors"} < manifest["files"].keys()
    assert "training_args.bin" not in manifest["files"]
    assert fold(folder)[0].curves["loss"].bins[-1][1] == steps[-1]["loss"] == metrics["loss"]
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize("settings", [
    ["tuner.kind=full", "training.gradient_checkpointing=true", "model.precision=bf16"],
    ["training.gradient_checkpointing=true", "stage.train_on_prompt=true", "training.clip=0"],
    ["training.schedule=polynomial", "data.train=[chats]", "data.eval=orders", "training.batch_size=64"],
])  # fmt: skip
def test_other_ways_to_train_also_learn(make_run: MakeRun, settings: list[str]) -> None:
    folder = make_run("other", *settings, "training.max_steps=6")
    train(folder)
    losses = [e["loss"] for e in of_type(folder, "step")]
    assert losses[-1] < losses[0] and all(map(math.isfinite, losses))


@pytest.mark.parametrize("settings", [
    ["training.max_steps=1"], ["training.schedule=polynomial", "training.max_steps=2", "optimizer.learning_rate=1e-8"],
])  # fmt: skip
def test_the_shortest_run_and_the_smallest_learning_rate_learn(make_run: MakeRun, settings: list[str]) -> None:
    folder = make_run("least", *settings, "data.eval_share=0")
    train(folder)
    assert of_type(folder, "step")[-1]["lr"] > 0
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)  # which begins as 0


@pytest.mark.parametrize(("rows", "settings", "steps"), [
    (36, {"epochs": 1, "batch_size": 4}, 9),
    (37, {"epochs": 2, "batch_size": 4}, 20),
    (37, {"epochs": 1.5, "batch_size": 4, "accumulation": 4}, 5),
    (5, {"epochs": 0.01, "batch_size": 8}, 1),
    (5, {"epochs": 3, "max_steps": 7}, 7),
    (5, {"epochs": 0, "max_steps": 7}, 7),
])  # fmt: skip
def test_steps_of_a_run(rows: int, settings: dict[str, float], steps: int) -> None:
    assert total_steps(rows, Training(**settings)) == steps


def test_how_often_things_happen() -> None:
    assert [every(0, 100, 10), every(0, 3, 10), every(0, 12, 5)] == [10, 1, 3]
    assert [every(7, 100, 10), every(700, 100, 10)] == [7, 100]


def test_a_broken_checkpoint_is_put_aside_and_the_one_before_is_used(make_run: MakeRun) -> None:
    whole = make_run("whole")
    expected = train(whole)
    for harm in ("flip", "cut", "missing", "empty", "step", "run", "stfp"):
        broken = copy_of(whole, whole.with_name(harm))
        newest = broken / "checkpoints" / "checkpoint-10"
        optimizer = newest / "optimizer.pt"
        content = bytearray(optimizer.read_bytes())
        content[len(content) // 2] ^= 1
        if harm == "flip":
            optimizer.write_bytes(content)
        elif harm == "cut":
            optimizer.write_bytes(content[:100])
        elif harm == "missing":
            (newest / "rng_state.pth").unlink()
        elif harm != "empty":
            manifest = (newest / "MANIFEST.json").read_text()
            found = {"step": '"step": 10', "run": '"run": "', "stfp": '"step"'}[harm]
            put = {"step": '"step": 8', "run": '"run": "0', "stfp": '"stfp"'}[harm]
            (newest / "MANIFEST.json").write_text(manifest.replace(found, put))
        else:
            for file in newest.iterdir():
                file.unlink()
        assert train(broken) == expected
        assert (broken / "checkpoints" / "bad-checkpoint-10").is_dir()
        warning = of_type(broken, "warning")[-1]
        assert warning["code"] == "checkpoint.bad" and warning["params"]["name"] == "checkpoint-10"
        assert of_type(broken, "phase")[-2]["resumed"] == 8


def test_a_run_killed_after_its_last_checkpoint_only_saves(make_run: MakeRun) -> None:
    folder = make_run("late", "training.epochs=1.1", "training.max_steps=0")
    expected = train(folder)
    before = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("adapter/adapter_model.safetensors", "metrics.json"):
        (folder / name).unlink()
    assert train(folder) == expected and len(of_type(folder, "step")) == 10
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_changed_settings_or_data_are_refused(make_run: MakeRun, tiny_data: Path, tmp_path: Path) -> None:
    data = copy_of(tiny_data, tmp_path / "data")
    folder = make_run("first", f"data.folder={data}")
    with pytest.raises(Stopped):
        train(folder, stop_at=3)
    run = (folder / "run.yaml").read_text(encoding="utf-8")
    (folder / "run.yaml").write_text(run.replace("rank: 4", "rank: 8"), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        train(folder)
    assert caught.value.code == "run.changed"
    (folder / "run.yaml").write_text(run, encoding="utf-8")
    with (data / "orders.jsonl").open("a") as file:
        file.write('{"instruction": "one", "output": "more"}\n')
    with pytest.raises(InputError) as caught:
        train(folder)
    assert caught.value.code == "data.changed"


@pytest.mark.parametrize("best", ["true", "false"])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(
    make_run: MakeRun, tiny_model: Path, tmp_path: Path, best: str
) -> None:
    poisoned = copy_of(tiny_model, tmp_path / "poisoned")
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)  # finite, and too large
    save_file(tensors, poisoned / "model.safetensors", metadata={"format": "pt"})
    folder = make_run("nan", f"model.path={poisoned}", "saving.every=1", "training.eval_every=1",
                      f"watching.best={best}")  # fmt: skip
    with pytest.raises(NotFinite) as caught:
        train(folder)
    assert (caught.value.code, caught.value.params) == ("loss.never_finite", {"count": 3, "step": 3})
    assert of_type(folder, "step")[-1]["loss"] is None and not of_type(folder, "saved")
    assert not list((folder / "checkpoints").glob("*")) and not (folder / "adapter").exists()
    folder = make_run("nan at the end", f"model.path={poisoned}", "training.max_steps=2")
    with pytest.raises(NotFinite):
        train(folder)


def test_a_worker_killed_for_a_full_disk_keeps_its_last_checkpoint(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Files may not grow beyond 700 kB: the weights fit, the state of the optimizer does not."""
    folder = new_run(tmp_path / "runs" / "full", tiny_model, tiny_data, "tuner.kind=full", "training.max_steps=6")
    with pytest.raises(Stopped):
        train(folder, stop_at=2)
    limit = (700_000, 700_000)
    process = launch_worker(folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert process.wait(120) == 2
    error = of_type(folder, "error")[-1]
    assert error["code"] == "disk.checkpoint", (folder / "console.log").read_text()
    assert error["params"]["needed"].endswith(" MB")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert checkpoints.newest_good(folder / "checkpoints") == folder / "checkpoints" / "checkpoint-2"


def test_a_full_disk_is_known_by_what_torch_says_of_it(tmp_path: Path) -> None:
    for size in (0, 1, 100_000):
        with pytest.raises(InputError) as caught, checkpoints.telling_full_disk(tmp_path):
            torch.save(torch.zeros(size), "/dev/full")
        assert caught.value.code == "disk.write"


def test_a_disk_too_small_is_told_before_training(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = checkpoints.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
    folder = make_run("small")
    with pytest.raises(InputError) as caught:
        train(folder)
    assert caught.value.code == "disk.full" and "MB" in caught.value.params["needed"] and not of_type(folder, "step")


def test_the_worker_stops_on_a_signal_with_a_checkpoint(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    folder = new_run(tmp_path / "runs" / "signal", tiny_model, tiny_data, "training.max_steps=100000")
    process = launch_worker(folder)
    while not of_type(folder, "step") and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 20
    end = of_type(folder, "end")[-1]
    step = of_type(folder, "step")[-1]["step"]
    assert end["cause"] == "stopped" and not of_type(folder, "error")
    assert checkpoints.newest_good(folder / "checkpoints") == folder / "checkpoints" / f"checkpoint-{step}"


def test_rows_that_mostly_repeat_others_are_told(make_run: MakeRun, tmp_path: Path) -> None:
    told = {}
    for name, copies in (("twice", 2), ("thrice", 3)):  # half of the rows repeat another; two thirds do
        rows = [{"instruction": f"q {i}", "output": "a"} for i in range(4)] * copies
        write_rows(tmp_path / f"{name}.jsonl", rows)
        data = (f"data.folder={tmp_path}", f"data.train=[{name}.jsonl]", "data.eval_share=0")
        train(folder := make_run(name, *data, "training.max_steps=1"))
        told[name] = [(e["params"]["count"], e["params"]["rows"]) for e in of_type(folder, "warning")
                      if e["code"] == "data.repeated"]  # fmt: skip
    assert told == {"twice": [], "thrice": [(8, 12)]}
