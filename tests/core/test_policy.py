"""Learning from one's own answers: PPO and GRPO against closed forms, and that rewards rise."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from core import checkpoints, config, preflight
from core.data.encode import IGNORED
from core.errors import InputError, Stopped
from core.events import Writer
from core.rewards import Reward
from core.team import Team
from core.training import halt, judging, policy
from core.training.exploring import Exploring
from core.training.judging import Answer, by_rule
from core.training.policy import Experience
from core.workspace import Context
from tests.conftest import copy_of, write_rows
from tests.core.helpers import digest, of_type, train, weights

MakeRun = Callable[..., Path]
GIVEN = ["training.batch_size=8", "stage.drawing.max_new_tokens=8", "training.warmup=0", "data.eval_share=0"]
LENGTH = ["stage.reward.by=length", "stage.reward.length=5"]


@pytest.fixture
def bold(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with ten times as large logits: as it is, it could hardly become sure of anything."""
    folder = copy_of(tiny_model, tmp_path / "bold")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] *= 10
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def parts(*rows: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in rows]


def test_advantages_are_sums_of_surprises() -> None:
    """A[t] is the sum over l of (gamma lambda)^l times the surprise at t + l, row by row."""
    rewards, values = (
        torch.tensor([[0.0, 0.5, 1.0], [2.0, 0.0, 0.0]]),
        torch.tensor([[0.2, -0.1, 0.4], [1.0, 0.0, 0.0]]),
    )
    gamma, lam = 0.9, 0.8
    found = policy.gae(rewards, values, gamma, lam)
    for row, length in ((0, 3), (1, 1)):
        after = [*values[row, 1:length].tolist(), 0.0]
        surprise = [float(rewards[row, t] + gamma * after[t] - values[row, t]) for t in range(length)]
        for t in range(length):
            wanted = sum((gamma * lam) ** (u - t) * surprise[u] for u in range(t, length))
            assert found[row, t].item() == pytest.approx(wanted, abs=1e-6)


def test_a_score_is_credited_less_what_it_cost() -> None:
    seen = Experience([], torch.tensor([1.0, 0.0]), parts([-1.0, -2.0], [-0.5]), parts([-1.5, -2.0], [-0.7]),
                      torch.zeros(()), parts([0.0, 0.0], [0.0]))  # fmt: skip
    policy.credit(seen, 0.1, 1.0, 1.0, Team())
    assert seen.returns is not None and seen.advantages is not None
    # without discount the return of a token is all that comes after: 1 at the end, less a tenth of the divergence
    assert [row.tolist() for row in seen.returns] == [pytest.approx([1 - 0.05, 1.0]), pytest.approx([-0.02])]
    every = torch.cat(seen.advantages)
    assert every.mean().item() == pytest.approx(0, abs=1e-6) and every.std(correction=0).item() == pytest.approx(
        1, abs=1e-5
    )
    assert seen.distance_B.tolist() == pytest.approx([0.5, 0.2])


def test_the_answers_of_several_processes_are_credited_as_those_of_one() -> None:
    def credited(team: Team, *which: int) -> Any:
        rows = [
            ([-1.0, -2.0], [-1.5, -2.0], [0.1, 0.3], 1.0),
            ([-0.5], [-0.7], [0.2], 0.0),
            ([-3.0], [-2.0], [0.4], 4.0),
        ]
        logps, reference, values, scores = zip(*(rows[number] for number in which), strict=True)
        seen = Experience([], torch.tensor(scores), parts(*logps), parts(*reference), torch.zeros(()), parts(*values))
        policy.credit(seen, 0.1, 0.9, 0.95, team)
        return torch.cat(seen.advantages or [])

    class Listening(Team):
        def means(self, numbers: list[float]) -> list[float]:
            heard.append(numbers)
            return [sum(own) / 2 for own in zip(*heard[:2], strict=True)] if len(heard) > 2 else numbers

    heard: list[list[float]] = []
    for which in ((0,), (1, 2)):
        credited(Listening(), *which)
    halves = [credited(Listening(), *which) for which in ((0,), (1, 2))]
    assert torch.allclose(torch.cat(halves), credited(Team(), 0, 1, 2), atol=1e-6)


def test_an_answer_is_compared_with_its_group() -> None:
    seen = Experience(
        [], torch.tensor([1.0, 0.0, 3.0, 3.0]), parts([0.0], [0.0, 0.0], [0.0], [0.0]), [], torch.zeros(())
    )
    policy.compare(seen, 2, scale=True)
    assert seen.advantages is not None
    assert [row.tolist() for row in seen.advantages] == [
        pytest.approx([1.0], abs=1e-3), pytest.approx([-1.0, -1.0], abs=1e-3), [0.0], [0.0]
    ]  # fmt: skip
    policy.compare(seen, 2, scale=False)
    assert [row.tolist() for row in seen.advantages][:2] == [[0.5], [-0.5, -0.5]]


def test_ratios_are_clipped_where_that_costs() -> None:
    old, new = torch.zeros(4), torch.tensor([0.5, 0.5, -0.5, -0.5])
    good = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, clipped = policy.clipped(new, old, good, 0.2)
    up, down = torch.tensor(0.5).exp().item(), torch.tensor(-0.5).exp().item()
    assert loss.tolist() == pytest.approx([-1.2, up, -down, 0.8]) and clipped.all()
    assert policy.value_loss(
        torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2
    ).item() == pytest.approx(0.32)
    assert policy.divergence(torch.tensor([-1.0]), torch.tensor([-2.0])).item() == pytest.approx(
        torch.tensor(-1.0).exp().item()
    )


def test_the_weight_is_steered_to_the_wanted_distance() -> None:
    assert policy.steered(0.1, 12.0, 6.0, 100) == pytest.approx(0.1 * 1.002)
    assert policy.steered(0.1, 5.4, 6.0, 100) == pytest.approx(0.1 * 0.999)


@pytest.mark.parametrize(
    "tuner", [["tuner=full", "optimizer.learning_rate=0.002"], ["tuner.kind=lora"], ["model.quantizer=bnb_4bit"]]
)
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_rewards_rise(make_run: MakeRun, stage: str, tuner: list[str], bold: Path) -> None:
    """What is wanted: the letter e. The model begins with random words."""
    more = ["stage.kl_weight=0.01", *(["stage.group=4"] if stage == "grpo" else ["training.batch_size=32"])]
    judged = ["stage.reward.by=regex", "stage.reward.pattern=e"]
    folder = make_run(
        "rise", f"model.path={bold}", f"stage={stage}", *GIVEN, *tuner, *judged, *more, "training.max_steps=20"
    )
    train(folder)
    told = [e["metrics"] for e in of_type(folder, "step")]
    rewards = [one["rewards/mean"] for one in told]
    assert rewards[0] < 0.7 and sum(rewards[-5:]) / 5 > 0.8, rewards
    wanted = {"objective/kl", "objective/entropy", "policy/clipped", "answers/length", "answers/ended"}
    assert wanted <= told[-1].keys() and told[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert ("policy/value_loss" in told[-1]) == (stage == "ppo")
    if tuner != ["tuner.kind=lora"]:
        return
    from peft import AutoPeftModelForCausalLM

    model: Any = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
    base = load_file(bold / "model.safetensors")
    kept = {name: tensor for name, tensor in model.unload().state_dict().items() if name in base}
    assert kept and all(torch.equal(tensor, base[name]) for name, tensor in kept.items())


def test_an_answer_has_ended_where_it_came_to_an_end_token(
    make_run: MakeRun, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the context of the model cut it before the longest answer was reached."""
    small = copy_of(tiny_model, tmp_path / "small")
    told = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(told | {"max_position_embeddings": 64}))
    drawn: list[list[int]] = []
    draw = Exploring._draw

    def watched(self: Any, *given: Any) -> Any:
        found = draw(self, *given)
        drawn.extend(found[0])
        return found

    monkeypatch.setattr(Exploring, "_draw", watched)
    longest = ["stage.drawing.max_new_tokens=64", "data.cutoff=48", "training.batch_size=2", "training.max_steps=1"]
    folder = make_run("cut", f"model.path={small}", "stage=grpo", "stage.group=4", *GIVEN, *longest)
    train(folder)
    end = told["eos_token_id"]
    share = sum(answer[-1] == end for answer in drawn) / len(drawn)
    assert 8 < max(map(len, drawn)) < 64 and share < 1
    assert of_type(folder, "step")[0]["metrics"]["answers/ended"] == pytest.approx(share)


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_tokens_are_learned_with_the_probabilities_that_they_were_drawn_with(
    make_run: MakeRun, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    """Whatever generation_config.json says, and though the table has rows that no token has."""
    folder = copy_of(tiny_model, tmp_path / "padded")
    tokens = len(AutoTokenizer.from_pretrained(folder))
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(tokens + 60, mean_resizing=False)
    model.lm_head.weight.data[tokens:] = 3 * model.lm_head.weight.data[:60]
    model.save_pretrained(folder)
    odd = {"bad_words_ids": [[token] for token in range(20, tokens)], "min_p": 0.5, "min_new_tokens": 8}
    (folder / "generation_config.json").write_text(json.dumps(odd))
    generate, drawn, seen = LlamaForCausalLM.generate, [], []

    def telling(self: Any, **given: Any) -> Any:
        found = generate(self, **given, return_dict_in_generate=True, output_scores=True)
        drawn.append(torch.stack(found.scores, 1).log_softmax(-1))
        return found.sequences

    def watched(found: Experience, *given: Any, **named: Any) -> None:
        seen.append(found)
        compare(found, *given, **named)

    compare = policy.compare
    monkeypatch.setattr(LlamaForCausalLM, "generate", telling)
    monkeypatch.setattr(policy, "compare", watched)
    train(make_run("drawn", f"model.path={folder}", "stage=grpo", "stage.group=4", "stage.kl_weight=0.1", *GIVEN,
                   f"tuner={tuner}", "training.batch_size=2", "training.max_steps=1"))  # fmt: skip
    answers = [torch.tensor(row["input_ids"][row["labels"] != IGNORED]) for row in seen[0].rows]
    assert max(answer.max() for answer in answers) >= 20
    for answer, logps_T_V, own, other in zip(answers, drawn[0], seen[0].logps, seen[0].reference, strict=True):
        wanted = logps_T_V[: len(answer)].gather(1, answer[:, None]).squeeze(1)
        assert torch.allclose(own, wanted, atol=1e-4) and torch.allclose(other, wanted, atol=1e-4)


def test_answers_that_are_all_worth_the_same_end_no_run(make_run: MakeRun) -> None:
    """Their loss is 0, step after step, until one is found that is better."""
    folder = make_run("none", "stage=grpo", "stage.group=2", *GIVEN, "training.batch_size=2", "training.max_steps=5")
    train(folder)
    told = of_type(folder, "step")
    assert [e["metrics"]["rewards/mean"] for e in told] == [0.0] * 5 and told[-1]["loss"] == 0


def test_one_answer_a_step_is_normalized_by_those_before_it(
    make_run: MakeRun, bold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own mean each would be worth nothing."""
    worth: list[float] = []
    credit = policy.credit

    def watched(seen: Experience, *given: float) -> None:
        worth.extend(seen.scores_B.tolist())
        credit(seen, *given)

    monkeypatch.setattr(policy, "credit", watched)
    judged = ["stage.drawing.max_new_tokens=8", "stage.reward.by=regex", "stage.reward.pattern=e"]
    alone = ["training.batch_size=1", "training.max_steps=6", "data.eval_share=0", "stage.normalize=true"]
    train(folder := make_run("alone", "stage=ppo", f"model.path={bold}", *judged, *alone))
    told = torch.tensor([e["metrics"]["rewards/mean"] for e in of_type(folder, "step")])
    spread = [told[: n + 1].std().item() if n else 0.0 for n in range(6)]
    wanted = [(told[n] - told[: n + 1].mean()).item() / (spread[n] + 1e-8) for n in range(6)]
    assert worth == pytest.approx(wanted, abs=1e-4) and max(map(abs, worth)) > 0.5


def test_without_a_weight_no_reference_is_asked(make_run: MakeRun) -> None:
    folder = make_run("free", "stage=ppo", "tuner.kind=full", "stage.kl_weight=0", *GIVEN, "training.batch_size=2",
                      "training.max_steps=2")  # fmt: skip
    train(folder)
    assert "objective/kl" not in of_type(folder, "step")[-1]["metrics"]


@pytest.mark.parametrize("stage", ["rm", "ppo", "grpo"])
def test_routers_are_balanced_in_every_stage(
    make_run: MakeRun, tiny_model: Path, workspace: Path, tmp_path: Path, stage: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "moe")
    shape = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    MixtralForCausalLM(shape).save_pretrained(tmp_path / "moe")
    data = workspace / "liked"
    data.mkdir()
    write_rows(data / "pairs.jsonl", [{"prompt": f"order {i}", "chosen": "red", "rejected": "blue"} for i in range(8)])
    of = [f"data.folder={data}", "data.train=[pairs.jsonl]", "data.eval_share=0"] if stage == "rm" else GIVEN
    learned = {}
    for weight in (0, 1):
        settings = [f"stage={stage}", f"model.path={tmp_path / 'moe'}", *of, f"training.router_aux_loss={weight}"]
        folder = make_run(f"{stage}-{weight}", *settings, "training.batch_size=2", "training.max_steps=2")
        train(folder)
        learned[weight] = weights(folder / "adapter")
    assert any(not torch.equal(tensor, learned[1][name]) for name, tensor in learned[0].items())


@pytest.mark.parametrize(("setting", "code", "place"), [
    ("training.s2=0.25", "stage.draws", "training.s2"), ("watching.best=true", "watching.drawn", "watching.best"),
])  # fmt: skip
def test_what_drawing_does_not_allow_is_refused(make_run: MakeRun, setting: str, code: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        make_run("wrong", "stage=ppo", *GIVEN, setting)
    assert (caught.value.code, caught.value.place) == (code, place)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_reward_model_judges(make_run: MakeRun, workspace: Path, kind: str, bold: Path) -> None:
    """It was taught to like “red”; as an adapter it shares the base, and is no part of what is saved."""
    data = workspace / "liked"
    data.mkdir()
    rows = [{"prompt": f"order {i} for Anna", "chosen": "red " * (1 + i % 4), "rejected": f"{word} " * (1 + i % 3)}
            for i in range(12) for word in ("blue", "pen")]  # fmt: skip
    write_rows(data / "pairs.jsonl", rows)
    base = f"model.path={bold}"
    pairs = [f"data.folder={data}", "data.train=[pairs.jsonl]", "training.max_steps=20"]
    train(make_run("judge", "stage=rm", base, *pairs, f"tuner.kind={kind}", "optimizer.learning_rate=0.003"))
    judged = ["stage.reward.by=model", "stage.reward.judge=judge", "stage.normalize=true", "stage.kl_weight=0.01"]
    longer = ["training.batch_size=32", "training.max_steps=24"]
    train(learner := make_run("learner", "stage=ppo", base, *GIVEN, *judged, *longer))
    told = [e["metrics"]["rewards/mean"] for e in of_type(learner, "step")]
    assert sum(told[-8:]) > sum(told[:8]) + 1, told
    names = weights(learner / "adapter")
    assert names and not any("reward" in name for name in names) and not list((learner / "adapter").glob("reward"))


@pytest.mark.parametrize(("given", "code", "place"), [
    (["stage.reward.by=regex"], "reward.missing", "stage.ppo.reward.pattern"),
    (["stage.reward.by=regex", "stage.reward.pattern=("], "reward.pattern", "stage.ppo.reward.pattern"),
    (["stage.reward.by=model"], "reward.missing", "stage.ppo.reward.judge"),
    (["stage.kl_weight=0", "stage.kl_target=6"], "policy.no_weight", "stage.ppo.kl_weight"),
    (["training.accumulation=2"], "stage.draws", "training.accumulation"),
    (["data.eval=orders", "data.train=[chats]"], "stage.draws", "data.eval"),
    (["data.packing=always"], "stage.draws", "data.packing"),
])  # fmt: skip
def test_settings_that_do_not_go_together(make_run: MakeRun, given: list[str], code: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        make_run("wrong", "stage=ppo", *given)
    assert (caught.value.problems[0].code, caught.value.problems[0].place) == (code, place)


def test_what_cannot_judge_is_refused(make_run: MakeRun) -> None:
    train(make_run("plain", "training.max_steps=1"))
    for judge, code in (("plain", "value_head.missing"), ("none", "path.missing")):
        with pytest.raises(InputError) as caught:
            train(make_run(code, "stage=ppo", "stage.reward.by=model", f"stage.reward.judge={judge}"))
        assert (caught.value.code, caught.value.place) == (code, "stage.ppo.reward.judge")


def test_a_judge_of_other_weights_or_tokens_is_refused(make_run: MakeRun, bold: Path) -> None:
    pairs = [{"prompt": "order", "chosen": "red", "rejected": f"{word}"} for word in ("blue", "pen", "cup")]
    write_rows(bold.parent / "pairs.jsonl", pairs)
    few = [f"data.folder={bold.parent}", "data.train=[pairs.jsonl]", "data.eval_share=0", "training.max_steps=1"]
    for tuner, code in (("lora", "reward.base"), ("full", "reward.tokenizer")):
        train(judge := make_run(tuner, "stage=rm", *few, f"tuner.kind={tuner}"))
        if tuner == "full":
            words = judge / "model" / "tokenizer.json"
            words.write_text(words.read_text().replace("<|user|>", "<|asks|>"))
        with pytest.raises(InputError) as caught:
            judged = ["stage.reward.by=model", f"stage.reward.judge={tuner}"]
            train(make_run(f"{tuner} judges", "stage=ppo", f"model.path={bold}", *GIVEN, *judged))
        assert (caught.value.code, caught.value.place) == (code, "stage.ppo.reward.judge")


def few_pairs(folder: Path) -> list[str]:
    """Return the settings of a run that learns one step from a few pairs, which are written into a folder."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "pairs.jsonl", [{"prompt": "order", "chosen": "red", "rejected": "blue"}] * 4)
    return [f"data.folder={folder}", "data.train=[pairs.jsonl]", "data.eval_share=0", "training.max_steps=1"]


def test_a_judge_that_cannot_share_the_base_is_refused_by_its_files(
    make_run: MakeRun, workspace: Path, bold: Path
) -> None:
    """By the board, before anything is started, and by the engine."""
    train(make_run("judge", "stage=rm", *few_pairs(workspace / "few")))
    train(make_run("plain", "training.max_steps=1"))
    place = "stage.ppo.reward.judge"
    for name, (judge, given, code) in {
        "above its parts": ("judge", ["tuner.pissa=true"], "reward.changed_base"),
        "above another": ("judge", ["tuner.start=[plain]"], "reward.changed_base"),
        "turned": ("judge", ["tuner={kind: oft, block: 4}"], "reward.adapter"),
        "whole": ("judge", ["tuner=full"], "reward.adapter"),
        "with other tokens": ("judge", ["model.add_tokens=[Anna]"], "reward.tokenizer"),
        "of another base": ("judge", [f"model.path={bold}"], "reward.base"),
        "no judge": ("plain", [], "value_head.missing"),
    }.items():
        folder = make_run(name, "stage=ppo", "stage.reward.by=model", f"stage.reward.judge={judge}", *GIVEN, *given)
        job = config.load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
        for check in (lambda job=job: preflight.check(job, workspace), lambda folder=folder: train(folder)):
            with pytest.raises(InputError) as caught:
                check()
            assert (caught.value.code, caught.value.place) == (code, place)


@pytest.mark.parametrize(("stage", "tuner", "how"), [
    ("rm", "lora", ["tuner.start=[first]", "tuner.go_on=true"]), ("rm", "lora", ["tuner.start=[first]"]),
    ("rm", "full", ["model.path={first}/model"]), ("ppo", "lora", ["tuner.start=[first]", "tuner.go_on=true"]),
])  # fmt: skip
def test_a_value_head_goes_on_from_that_of_what_the_run_begins_with(
    make_run: MakeRun, workspace: Path, stage: str, tuner: str, how: list[str]
) -> None:
    """It tells what it told; a run that is resumed needs the first one no more."""
    few = few_pairs(workspace / "few") if stage == "rm" else [*GIVEN, *LENGTH, "training.batch_size=2"]
    given = [f"stage={stage}", f"tuner.kind={tuner}", *few]
    train(first := make_run("first", *given, "training.max_steps=1"))
    slowly = ["optimizer.learning_rate=1e-9", "training.seed=1", "training.max_steps=3"]
    again = [*given, *(each.format(first=first) for each in how), *slowly]
    train(whole := make_run("whole", *again))
    saved = "model" if tuner == "full" else "adapter"
    one, other = (load_file(run / saved / "value_head.safetensors") for run in (first, whole))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in ("weight", "bias"))
    with pytest.raises(Stopped):
        train(broken := make_run("broken", *again), stop_at=2)
    (first / saved / "value_head.safetensors").unlink()
    if saved == "adapter":
        shutil.rmtree(first)
    train(broken)
    assert digest(broken / saved) == digest(whole / saved)


@pytest.mark.parametrize("where", ["tuner.lora.start", "model.path"])
def test_a_value_head_that_does_not_fit_what_the_run_begins_with_is_refused(
    make_run: MakeRun, workspace: Path, bold: Path, where: str
) -> None:
    given = ["stage=rm", *few_pairs(workspace / "few")]
    train(first := make_run("first", *given))
    begun = first / "adapter" if where == "tuner.lora.start" else bold
    how = "tuner.start=[first]" if begun != bold else f"model.path={bold}"
    for code, tensor in (("unfit", torch.ones(1, 8)), ("not_finite", torch.full((1, 64), torch.nan))):
        save_file({"weight": tensor, "bias": torch.zeros(1)}, begun / "value_head.safetensors")
        with pytest.raises(InputError) as caught:
            train(make_run(code, *given, how))
        assert (caught.value.code, caught.value.place) == (f"value_head.{code}", where)


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_run_is_not_gone_on_with_another_judge(make_run: MakeRun, workspace: Path, stage: str) -> None:
    few = ["stage=rm", *few_pairs(workspace / "few")]
    train(judge := make_run("judge", *few))
    judged = ["stage.reward.by=model", "stage.reward.judge=judge", "training.batch_size=2", "training.max_steps=3"]
    group = ["stage.group=2"] if stage == "grpo" else []
    folder = make_run("learner", f"stage={stage}", *GIVEN, *judged, *group)
    with pytest.raises(Stopped):
        train(folder, stop_at=2)
    shutil.move(judge, workspace / "was")
    train(make_run("judge", *few, "training.seed=7"))
    with pytest.raises(InputError) as caught:
        train(folder)
    assert (caught.value.code, caught.value.place) == ("reward.changed", "stage")
    head = judge / "adapter" / "value_head.safetensors"
    shutil.copytree(workspace / "was" / "adapter", judge / "adapter", dirs_exist_ok=True)
    train(folder)
    head.write_bytes(head.read_bytes()[:-1] + b" ")
    with pytest.raises(InputError) as caught:
        train(folder)
    assert caught.value.code == "reward.changed"


def test_a_judge_must_know_new_tokens(make_run: MakeRun, workspace: Path) -> None:
    few, added = few_pairs(workspace / "few"), "model.add_tokens=[Anna]"
    train(make_run("others", "stage=rm", *few, "model.add_tokens=[Bert]"))
    train(make_run("with", "stage=rm", *few, added))
    train(make_run("more", "stage=rm", *few, "model.add_tokens=[Anna, Bert]"))
    judged = ["stage=ppo", "stage.reward.by=model", *GIVEN, added, "training.max_steps=1"]
    with pytest.raises(InputError) as caught:
        train(make_run("unknown", *judged, "stage.reward.judge=others"))
    assert (caught.value.code, caught.value.place) == ("reward.tokenizer", "stage.ppo.reward.judge")
    for judge, more in (("with", "model.add_tokens=[]"), ("more", added)):
        folder = make_run(f"without {judge}", *judged, f"stage.reward.judge={judge}", more)
        job = config.load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
        for check in (lambda job=job: preflight.check(job, workspace), lambda folder=folder: train(folder)):
            with pytest.raises(InputError) as caught:
                check()
            assert (caught.value.code, caught.value.place) == ("reward.tokenizer", "stage.ppo.reward.judge")
            assert ("Anna" if judge == "with" else "Bert") in str(caught.value)
    whole = ["tuner.extra=[embed_tokens,lm_head]", "stage.reward.judge=with"]
    with pytest.raises(InputError) as caught:
        train(make_run("in another way", *judged, *whole))
    assert (caught.value.code, caught.value.place) == ("reward.tables", "stage.ppo.reward.judge")
    train(folder := make_run("known", *judged, "stage.reward.judge=with"))
    assert of_type(folder, "saved")


def test_answers_end_where_the_model_does_and_the_distance_is_told(make_run: MakeRun, bold: Path) -> None:
    told = json.loads((bold / "config.json").read_text()) | {"max_position_embeddings": 48}
    (bold / "config.json").write_text(json.dumps(told))
    lengthy = ["stage.reward.by=regex", "stage.reward.pattern=e", "stage.drawing.max_new_tokens=400"]
    folder = make_run("long", f"model.path={bold}", "stage=grpo", "stage.group=4", "training.batch_size=4", *lengthy,
                      "training.max_steps=3", "training.warmup=0", "data.cutoff=40")  # fmt: skip
    train(folder)
    steps = [event["metrics"] for event in of_type(folder, "step")]
    assert all(0 < step["answers/length"] < 48 for step in steps) and steps[-1]["objective/kl"] != 0


def test_rules_and_a_pattern_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def worth(text: str, **given: Any) -> float:
        return by_rule(Reward(**given))(Answer(text, " yes\n", len(text)))

    assert [worth(text, by="exact") for text in ("yes", "Yes")] == [1.0, 0.0]
    assert [worth(text, by="json") for text in ('{"a": 1}', "{", "[" * 10**5, "[NaN]")] == [1.0, 0.0, 0.0, 0.0]
    assert [worth(text, by="length", length=4) for text in ("abcd", "ab", "", "a" * 9)] == [1.0, 0.5, 0.0, 0.0]
    assert [worth(text, by="regex", pattern="b+$") for text in ("abb", "aba")] == [1.0, 0.0]
    monkeypatch.setattr(judging, "SECONDS", 1e-4)
    with pytest.raises(InputError) as caught:
        worth("a" * 24 + "b" * 2000, by="regex", pattern="(.*a){25}")
    assert caught.value.code == "reward.slow"


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_what_is_drawn_is_shown_with_its_reward(make_run: MakeRun, bold: Path, stage: str) -> None:
    """As often as others are evaluated, to as many questions as samples are wished, and without a trace."""
    group = ["stage.group=2"] if stage == "grpo" else []
    given = [f"stage={stage}", f"model.path={bold}", *GIVEN, *group, "training.batch_size=3", "training.max_steps=5",
             "stage.reward.by=regex", "stage.reward.pattern=e"]  # fmt: skip
    silent, folder = make_run("silent", *given), make_run("told", *given, "watching.samples=2", "training.eval_every=2")
    train(silent)
    train(folder)
    told = of_type(folder, "sample")
    assert [(e["step"], e["index"]) for e in told] == [(step, index) for step in (0, 2, 4) for index in (0, 1)]
    assert all(e["reward"] == ("e" in e["answer"]) for e in told) and {e["reward"] for e in told} == {0, 1}
    assert all(set(json.loads(e["reference"]).values()) <= set(e["prompt"].split()) for e in told), told
    assert digest(folder / "adapter") == digest(silent / "adapter")


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_step_is_broken_off_while_it_draws_and_done_anew(make_run: MakeRun, stage: str) -> None:
    """Also where it is the first of an epoch, before which random numbers are used up."""
    given = [f"stage={stage}", *GIVEN, *LENGTH, "training.batch_size=2", "data.max_rows=4", "training.max_steps=4",
             "saving.every=9", "stage.drawing.max_new_tokens=9"]  # fmt: skip
    given += ["stage.normalize=true", "stage.kl_target=3"] if stage == "ppo" else ["stage.group=2"]
    whole, broken = make_run("whole", *given), make_run("broken", *given)
    train(whole)
    for step in (2, 3, 4):  # stopped when the step before it is told
        with pytest.raises(Stopped):
            train(broken, stop_at=step)
        assert (broken / "checkpoints" / f"checkpoint-{step - 1}" / "MANIFEST.json").exists()
        assert not (broken / "checkpoints" / f"checkpoint-{step}").exists()
    train(broken)
    assert [e["metrics"] for e in of_type(broken, "step")] == [e["metrics"] for e in of_type(whole, "step")]
    assert digest(broken / "adapter") == digest(whole / "adapter")


@pytest.mark.parametrize(("share", "kept"), [(0.0, 1), (0.5, 2)])
def test_a_step_that_learns_already_is_waited_for_no_longer_than_the_grace_period_allows(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, share: float, kept: int
) -> None:
    given = ["stage=grpo", "stage.group=2", "stage.epochs=3", *GIVEN, *LENGTH, "training.batch_size=2",
             "training.max_steps=3", "saving.every=1"]  # fmt: skip
    train(whole := make_run("whole", *given))
    folder, stop, compare, steps = make_run("broken", *given), threading.Event(), policy.compare, []

    def stopping(*seen: Any, **named: Any) -> None:
        compare(*seen, **named)
        steps.append(seen)
        if len(steps) == 2:
            stop.set()

    job = config.load((folder / "run.yaml").read_text(encoding="utf-8"), "run.yaml")
    assert isinstance(job, config.Run)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(halt, "SHARE", share)
        patch.setattr(policy, "compare", stopping)
        job.stage.train(job, Context(folder, folder.parents[1], Writer(folder), stop))
    assert checkpoints.newest_good(folder / "checkpoints") == folder / "checkpoints" / f"checkpoint-{kept}"
    train(folder)
    assert digest(folder / "adapter") == digest(whole / "adapter")
