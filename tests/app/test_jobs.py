"""What the tabs and the command line both do with jobs."""

from __future__ import annotations

from pathlib import Path

from app.jobs import base
from app.pickers import offers
from core import config, runs


def test_the_base_of_a_run_comes_without_new_tokens_which_the_adapter_brings(workspace: Path) -> None:
    job = config.run(config.override(["model.add_tokens=[new]", "model.rope=linear", "data.cutoff=1024"]))
    folder = runs.create(job, workspace)
    found = base(folder.name, workspace)
    assert (found["add_tokens"], found["add_special_tokens"]) == ([], [])
    assert (found["path"], found["rope"], found["context"]) == (job.model.path, "linear", 1024)


def test_a_reward_model_is_chosen_among_reward_models_alone(tmp_path: Path) -> None:
    for name, stage in (("pupil", "dpo"), ("judge", "rm"), ("unfinished", "rm")):
        folder = runs.create(config.resolve({"name": name, "stage": stage}), tmp_path)
        if name != "unfinished":
            (folder / "adapter").mkdir()
    picks = {s.path: s.pick for s in config.known_settings(config.Run)}
    assert {picks[f"stage.{stage}.reward.judge"] for stage in ("ppo", "grpo")} == {"judge"}
    assert offers("judge", tmp_path) == ["judge"]
    assert set(offers("tuned", tmp_path)) == {"pupil", "judge"}
