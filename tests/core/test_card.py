"""The card of what was trained: text stays text, and figures are what they are called."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import config
from core.config import Run
from core.events import RunState
from core.export.card import trained
from core.export.merge import export
from core.training import results
from tests.conftest import write_rows
from tests.core.helpers import of_type, train
from tests.core.models_fixtures import context

METRICS = {"loss": 1.5, "step": 4, "epoch": 1.0, "tokens": 100}


def card(run: Run, **metrics: float) -> tuple[dict[str, Any], str]:
    """Return the header and the rest of the card of a run that saved an adapter."""
    made = trained(run, METRICS | metrics, whole=False, sees=False)
    header, _, text = made.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(header), text


@pytest.mark.parametrize("path", ['m"); print("PWNED"); x = ("', "a|b`<img src=x onerror=alert(1)>`", "a\\|b\n---\n"])
def test_the_path_of_a_model_is_no_markup_and_no_code(path: str) -> None:
    header, text = card(config.run({"model": {"path": path}, "data": {"train": ["orders"]}}))
    assert header["base_model"] == path
    calls = [node for node in ast.walk(ast.parse(text.split("```python\n")[1].split("```")[0]))
             if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained")]  # fmt: skip
    folder = "PATH OF THIS FOLDER"
    assert [ast.literal_eval(node.args[-1]) for node in calls] == [folder, path, folder]
    (line,) = [line for line in text.splitlines() if line.startswith("| Base |")]
    assert "<" not in line and line.replace("\\\\", "").replace("\\|", "").replace("\\`", "").count("|") == 3
    assert line.replace("\\`", "").count("`") == 0


STAGES = {
    "dpo": {"rewards/accuracies": 0.5, "eval_loss": 0.6, "eval_rewards/accuracies": 0.9, "eval_rewards/margins": 0.4},
    "ppo": {"rewards/mean": 0.8, "objective/kl": 0.2, "policy/value_loss": 0.3, "rewards/std": 0.1},
}


@pytest.mark.parametrize(("stage", "shown", "hidden"), [
    ("dpo", ["Loss | 1.5", "Eval loss | 0.6", "Eval rewards/accuracies | 0.9,", "Eval rewards/margins | 0.4,"],
     ["| Rewards/"]),
    ("ppo", ["Rewards/mean | 0.8,", "Objective/kl | 0.2,"], ["loss |"]),
])  # fmt: skip
def test_a_card_tells_what_a_stage_is_judged_by(stage: str, shown: list[str], hidden: list[str]) -> None:
    reward = {"reward": {"by": "length", "length": 9}} if stage == "ppo" else {}
    header, text = card(config.run({"stage": {"kind": stage, **reward}, "data": {"train": ["a"]}}), **STAGES[stage])
    assert all(f"| {row}" in text for row in shown) and not any(row in text for row in hidden)
    assert header["pipeline_tag"] == "text-generation" and "held-out rows" in text


def test_metrics_tell_apart_what_was_learned_and_what_was_held_out(tmp_path: Path) -> None:
    state = RunState()
    state.apply({"type": "step", "time": 1, "step": 4, "total": 4, **METRICS, "metrics": {"rewards/margins": 0.5}})
    for step, margin in ((2, 0.1), (4, 0.2)):
        for name, more in (("one", 0.0), ("two", 1.0)):
            state.apply({"type": "eval", "time": 1, "step": step, "set": name, "loss": margin + more,
                         "metrics": {"rewards/margins": margin + more}})  # fmt: skip
    last = {"rewards/margins": 0.5, "eval_one_loss": 0.2, "eval_two_loss": 1.2, "eval_one_rewards/margins": 0.2,
            "eval_two_rewards/margins": 1.2}  # fmt: skip
    assert results.write(tmp_path, state) == METRICS | last
    state.apply({"type": "saved", "time": 1, "what": "checkpoint", "path": "", "step": 2})
    assert results.write(tmp_path, state)["eval_two_rewards/margins"] == 1.1
    assert json.loads((tmp_path / "metrics.json").read_text())["saved_step"] == 2


def asked(folder: Path) -> Callable[[str, str], float]:
    """Do what the card in a folder says; return the function that it makes."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in text and "`value_head.safetensors`" in text
    made: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0].replace("PATH OF THIS FOLDER", str(folder)), made)
    return made["reward"]


@pytest.mark.parametrize(("tuner", "saved", "template"), [("lora", "adapter", "chatml"), ("full", "model", "auto")])
def test_the_card_of_a_reward_model_says_how_to_ask_it(
    make_run: Callable[..., Path], tiny_model: Path, workspace: Path, tuner: str, saved: str, template: str
) -> None:
    """The code in it gives the rewards that the run told of the held-out rows; so does that of an export."""
    rows = [{"prompt": "order red pen", "chosen": "red pen " * n, "rejected": "Paul"} for n in (1, 2, 3)]
    write_rows(workspace / "pairs.jsonl", rows * 4)
    write_rows(workspace / "held.jsonl", rows)
    folder = make_run("judge", "stage=rm", f"data.folder={workspace}", "data.train=[pairs.jsonl]",
                      "data.eval=[held.jsonl]", "training.max_steps=2", "training.eval_every=2", "training.warmup=0",
                      f"tuner={tuner}", f"data.template={template}")  # fmt: skip
    metrics = train(folder)
    job = {"source": "judge", "model": {"path": str(tiny_model), "precision": "fp32"}, "hardware": {"device": "cpu"}}
    with context(workspace, "out") as at:
        exported = Path(export(config.resolve(job, job="export"), at)["folder"])
    (told,) = of_type(folder, "eval")
    for reward in asked(folder / saved), asked(exported):
        for side in ("chosen", "rejected"):
            mean = sum(reward(row["prompt"], row[side]) for row in rows) / len(rows)
            assert mean == pytest.approx(told["metrics"][f"rewards/{side}"], abs=1e-4)
    assert metrics["eval_held.jsonl_rewards/chosen"] == told["metrics"]["rewards/chosen"]
