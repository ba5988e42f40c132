"""Stages that learn from comparisons and feedback: their losses against sums over probabilities made here by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data.batch import load
from core.data.pack import Flat, Padder
from core.data.pairs import Apart, Pairs, Sides
from core.errors import InputError, Stopped
from core.models.varlen import isolate
from core.sections import Data
from core.team import Team
from core.training import losses
from core.training.measured import means, sums
from core.training.objective import say
from core.training.preference import AgainstReference, LikedOrNot, OddsRatio, WithoutReference, tokens
from core.training.running import Running
from core.tuners.lora import Lora
from tests.conftest import copy_of, write_rows
from tests.core.helpers import of_type, train, weights
from tests.core.test_encode import by_hand

MakeRun = Callable[..., Path]
COLOURS, THINGS = ("red", "green", "blue"), ("pen", "book", "cup")
PAIRS = [
    {"prompt": f"order {colour} {thing} for Anna",
     "chosen": f"{colour} {thing} " * (1 + i % 3), "rejected": "Paul " * (i % 4 + 1)}
    for i, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS)
]  # fmt: skip
FEEDBACK = [
    {"prompt": row["prompt"], "completion": row["chosen" if i % 3 else "rejected"], "label": bool(i % 3)}
    for i, row in enumerate(PAIRS)
]
STAGES = {
    "dpo": (PAIRS, []),
    "ipo": (PAIRS, ["stage.loss=ipo"]),
    "orpo": (PAIRS, []),
    "simpo": (PAIRS, []),
    "cpo": (PAIRS, []),
    "kto": (FEEDBACK, []),
    "rm": (PAIRS, []),
}


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """A data folder with the sets pairs.jsonl and feedback.jsonl."""
    folder = tmp_path / "compared"
    folder.mkdir()
    write_rows(folder / "pairs.jsonl", PAIRS)
    write_rows(folder / "feedback.jsonl", FEEDBACK)
    return folder


def settings(stage: str, data: Path) -> list[str]:
    """Return the settings of a run of a stage over all its rows."""
    rows, more = STAGES[stage]
    name = "feedback.jsonl" if rows is FEEDBACK else "pairs.jsonl"
    kind = "dpo" if stage == "ipo" else stage
    return [f"stage={kind}", f"data.folder={data}", f"data.train=[{name}]", *more]


def said(model: Any, folder: Path, prompt: str, answer: str) -> torch.Tensor:
    """Return the logarithms of the probabilities of the tokens of an answer, by one forward of one row."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    ids, labels = by_hand(AutoTokenizer.from_pretrained(folder), messages)
    logits_T_V = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([logits_T_V[at, label] for at, label in enumerate(labels[1:]) if label != -100])


@pytest.fixture
def tuned(tiny_model: Path, tmp_path: Path) -> Any:
    """The tiny model with an adapter that says something."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    made = Lora(rank=4).attach(model, tmp_path)
    torch.manual_seed(1)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return made.eval()


def batches(model: Any, folder: Path, data: Path, name: str, wanted: tuple[str, ...], wrap: Any) -> list[Any]:
    """Return one batch of all rows: in one line, and padded."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lessons = load(Data(folder=str(data), train=[name], eval_share=0), data, tokenizer, 0, wanted=wanted)
    pairs: Any = Pairs(lessons.train)  # type: ignore[arg-type]
    padded = wrap(Padder(tokenizer.pad_token_id))([pairs[i] for i in range(len(pairs))])
    assert isolate(model)
    return [padded, wrap(Flat())([pairs[i] for i in range(len(pairs))])]


def one(objective: Any, model: Any, batch: Any) -> tuple[float, dict[str, float]]:
    with torch.no_grad():
        loss, told = objective(model, batch, None)
    return loss.item(), means(sums([told], torch.ones(1)))


@torch.no_grad()
def test_losses_over_comparisons(tuned: Any, tiny_model: Path, compared: Path) -> None:
    both = {
        side: [said(tuned, tiny_model, row["prompt"], row[side]) for row in PAIRS] for side in ("chosen", "rejected")
    }
    with tuned.disable_adapter():
        before = {side: [said(tuned, tiny_model, row["prompt"], row[side]) for row in PAIRS] for side in both}
    total = {side: torch.stack([one.sum() for one in found]) for side, found in both.items()}
    mean = {side: torch.stack([one.mean() for one in found]) for side, found in both.items()}
    ratios = {side: total[side] - torch.stack([one.sum() for one in before[side]]) for side in both}
    per_token = {side: mean[side] - torch.stack([one.mean() for one in before[side]]) for side in both}
    margin = 0.3 * (ratios["chosen"] - ratios["rejected"])
    right, wrong = torch.sigmoid(margin).log(), torch.sigmoid(-margin).log()
    imitation = -mean["chosen"].mean()
    odds = {side: mean[side].exp() / (1 - mean[side].exp()) for side in both}
    shared = [min(len(c), len(r)) for c, r in zip(both["chosen"], both["rejected"], strict=True)]
    short = {
        side: torch.stack([
            (now - was)[:n].sum() + 0.25 * (now - was)[n:].sum()
            for now, was, n in zip(both[side], before[side], shared, strict=True)
        ])
        for side in both
    }  # fmt: skip
    expected = [
        (AgainstReference("sigmoid", 0.3), -right),
        (AgainstReference("sigmoid", 0.3, smoothing=0.2), -0.8 * right - 0.2 * wrong),
        (AgainstReference("robust", 0.3, smoothing=0.2), (-0.8 * right + 0.2 * wrong) / 0.6),
        (AgainstReference("hinge", 0.3), (1 - margin).clamp(min=0)),
        (AgainstReference("ipo", 0.3), (per_token["chosen"] - per_token["rejected"] - 1 / 0.6) ** 2),
        (AgainstReference("bco_pair", 0.3),
         -torch.sigmoid(0.3 * ratios["chosen"]).log() - torch.sigmoid(-0.3 * ratios["rejected"]).log()),
        (AgainstReference("sigmoid", 0.3, imitate=0.5), -right + 0.5 * imitation),
        (AgainstReference("sigmoid", 0.3, tail=0.25),
         -torch.sigmoid(0.3 * (short["chosen"] - short["rejected"])).log()),
        (OddsRatio(0.3), imitation - 0.3 * torch.sigmoid((odds["chosen"] / odds["rejected"]).log()).log()),
        (WithoutReference(2.0, 1.0, mean=True), -torch.sigmoid(2 * (mean["chosen"] - mean["rejected"]) - 1).log()),
        (WithoutReference(0.3, imitate=1.0),
         imitation - torch.sigmoid(0.3 * (total["chosen"] - total["rejected"])).log()),
    ]  # fmt: skip
    for batch in batches(tuned, tiny_model, compared, "pairs.jsonl", ("ranking",), Sides):
        for objective, values in expected:
            loss, told = one(objective, tuned, batch)
            assert loss == pytest.approx(values.mean().item(), abs=2e-5), objective
            assert told["rewards/margins"] == pytest.approx(told["rewards/chosen"] - told["rewards/rejected"], abs=1e-5)
        accuracy = (ratios["chosen"] > ratios["rejected"]).float().mean()
        assert one(expected[0][0], tuned, batch)[1]["rewards/accuracies"] == accuracy


@torch.no_grad()
def test_answers_are_judged_from_the_mean_of_all_rewards_so_far(tuned: Any, tiny_model: Path, compared: Path) -> None:
    """BCO: the batch that is learned from counts, one that is only looked at does not."""
    batch = batches(tuned, tiny_model, compared, "pairs.jsonl", ("ranking",), Sides)[0]
    running = Running()
    bco = AgainstReference("bco_pair", 0.3, running=running)
    told = one(AgainstReference("bco_pair", 0.3), tuned, batch)[1]
    running.add(torch.tensor([1.0, 3.0]))
    own = [told["rewards/chosen"], told["rewards/rejected"]]
    pairs = len(PAIRS)
    shift = (4.0 + pairs * sum(own)) / (2 + 2 * pairs)
    one(bco, tuned.train(), batch)
    assert running.mean == pytest.approx(shift, abs=1e-5) and running.count == 2 + 2 * pairs
    seen = say(tuned, tokens(batch))
    with tuned.disable_adapter():
        reward_B = 0.3 * (seen.sums_B() - say(tuned, tokens(batch)).sums_B())
    chosen_B, rejected_B = reward_B.chunk(2)
    wanted = (-torch.sigmoid(chosen_B - shift).log() - torch.sigmoid(shift - rejected_B).log()).mean().item()
    assert one(bco, tuned.eval(), batch)[0] == pytest.approx(wanted, abs=1e-4)
    assert running.count == 2 + 2 * pairs


@torch.no_grad()
def test_loss_over_feedback(tuned: Any, tiny_model: Path, compared: Path) -> None:
    rows = FEEDBACK
    others = [rows[-1], *rows[:-1]]

    def ratio(prompts: list[Any], answers: list[Any]) -> torch.Tensor:
        asked = [(row["prompt"], other["completion"]) for row, other in zip(prompts, answers, strict=True)]
        now = torch.stack([said(tuned, tiny_model, *one).sum() for one in asked])
        with tuned.disable_adapter():
            return now - torch.stack([said(tuned, tiny_model, *one).sum() for one in asked])

    distance = ratio(rows, others).mean().clamp(min=0)
    values = 0.2 * (ratio(rows, rows) - distance)
    expected = [
        1.5 * (1 - torch.sigmoid(value)) if row["label"] else 0.7 * (1 - torch.sigmoid(-value))
        for row, value in zip(rows, values, strict=True)
    ]
    for batch in batches(tuned, tiny_model, compared, "feedback.jsonl", ("feedback",), Apart):
        loss, told = one(LikedOrNot(0.2, 1.5, 0.7), tuned, batch)
        assert loss == pytest.approx(torch.stack(expected).mean().item(), abs=2e-5)
        assert told["objective/kl"] == pytest.approx(distance.item(), abs=1e-4)


@torch.no_grad()
def test_the_distance_is_that_of_the_examples_of_all(tuned: Any, tiny_model: Path, compared: Path) -> None:
    """Two processes: the other has one example more, and is further away by 30."""
    batch = batches(tuned, tiny_model, compared, "feedback.jsonl", ("feedback",), Apart)[0]
    alone = LikedOrNot(0.2, 1.0, 1.0)._mean(torch.tensor([-4.0, 2.0]))
    team = Team()
    team.means = lambda numbers: [(2 * numbers[0] + 30) / 2, (2 * numbers[1] + 1) / 2]
    objective = LikedOrNot(0.2, 1.0, 1.0, team=team)
    assert (alone, objective._mean(torch.tensor([-4.0, 2.0]))) == (-1.0, pytest.approx(26 / 5))
    told = one(objective, tuned, batch)[1]
    assert told["objective/kl"] > one(LikedOrNot(0.2, 1.0, 1.0), tuned, batch)[1]["objective/kl"]


def test_odds_of_a_sure_answer_are_finite() -> None:
    assert losses.log_odds(torch.tensor([0.0, -1e-9])).isfinite().all()
    assert losses.log_odds(torch.tensor([math.log(0.25)])).item() == pytest.approx(math.log(1 / 3))


@pytest.mark.parametrize(("stage", "tuner"), [
    *((stage, tuner) for stage in STAGES for tuner in ("tuner=full", "tuner.kind=lora", "model.quantizer=bnb_4bit")),
    ("dpo", "tuner.pissa=true"), ("kto", "tuner.pissa=true"),
])  # fmt: skip
def test_stages_learn(make_run: MakeRun, compared: Path, stage: str, tuner: str) -> None:
    """Twenty steps; the first loss is that of a model that is its own reference, the last tell right from wrong."""
    rate = "optimizer.learning_rate=0.003" if tuner == "tuner=full" else "optimizer.learning_rate=0.01"
    steps = ["training.max_steps=20", "training.batch_size=16", "training.warmup=0", "data.eval_share=0.2", rate]
    folder = make_run("stage", *settings(stage, compared), tuner, *steps)
    metrics = train(folder)
    told = of_type(folder, "step")
    first = {"dpo": math.log(2), "ipo": 25.0, "kto": 0.5}.get(stage)
    if first:
        assert told[0]["loss"] == pytest.approx(first, abs=1e-4)
    assert told[-1]["loss"] < told[0]["loss"] and metrics["eval_loss"] > 0
    last = told[-1]["metrics"]
    assert last["rewards/margins"] > told[0]["metrics"]["rewards/margins"]
    if stage not in ("kto", "cpo"):  # which compare no pairs; and whole answers, of which the longer one is worse
        assert last["rewards/accuracies"] >= 0.95
    if stage != "kto":
        assert {"rewards/chosen", "rewards/margins"} <= of_type(folder, "eval")[-1]["metrics"].keys()
    assert (folder / "adapter" / "value_head.safetensors").exists() == (stage == "rm" and tuner != "tuner=full")
    assert (folder / "model" / "value_head.safetensors").exists() == (stage == "rm" and tuner == "tuner=full")


def test_kto_tells_the_share_of_answers_on_the_right_side(make_run: MakeRun, compared: Path) -> None:
    folder = make_run("right", *settings("kto", compared), "training.max_steps=20", "data.eval=[feedback.jsonl]",
                      "data.train=[more.jsonl]", "training.batch_size=16", "training.warmup=0")  # fmt: skip
    write_rows(compared / "more.jsonl", FEEDBACK * 2)
    train(folder)
    first, last = (of_type(folder, "eval")[at]["metrics"]["rewards/accuracies"] for at in (0, -1))
    assert last == 1 and 0 <= first <= 1


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_reference_asked_first_is_the_same(make_run: MakeRun, compared: Path, stage: str) -> None:
    given = [*settings(stage, compared), "training.max_steps=5", "optimizer.learning_rate=0.003"]
    live, first = make_run("live", *given), make_run("first", *given, "stage.precompute=true")
    train(live)
    train(first)
    assert "reference" in [e["phase"] for e in of_type(first, "phase")]
    for one, other in zip(of_type(live, "step"), of_type(first, "step"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)


@pytest.mark.parametrize("damage", [lambda content: content[:-5], lambda content: content[:-4] + bytes(4)])
def test_a_damaged_reference_is_asked_anew(make_run: MakeRun, compared: Path, damage: Callable[[bytes], bytes]) -> None:
    """Cut short, or with other bytes: the run that goes on learns what an unbroken one learns."""
    given = [*settings("dpo", compared), "training.max_steps=4", "stage.precompute=true"]
    whole, broken = make_run("whole", *given), make_run("broken", *given)
    train(whole)
    with pytest.raises(Stopped):
        train(broken, stop_at=2)
    for path in broken.glob("reference_*.npy"):
        path.write_bytes(damage(path.read_bytes()))
    train(broken)
    steps = [[(e["step"], e["loss"], e["grad_norm"]) for e in of_type(run, "step")] for run in (whole, broken)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("stage", ["dpo", "orpo", "cpo"])
def test_accumulated_pairs_are_the_batch(make_run: MakeRun, compared: Path, stage: str) -> None:
    """Nine pairs: one batch, or two of four and one of a single pair, which counts no more than another."""
    rows = [row | {"chosen": row["chosen"] * (1 + 5 * (i % 2))} for i, row in enumerate(PAIRS)]
    write_rows(compared / "pairs.jsonl", rows)
    given = [*settings(stage, compared), "data.eval_share=0", "training.max_steps=3", "training.warmup=0"]
    one = make_run("one", *given, "training.batch_size=9")
    parts = make_run("parts", *given, "training.batch_size=4", "training.accumulation=3")
    train(one)
    train(parts)
    for a, b in zip(of_type(one, "step"), of_type(parts, "step"), strict=True):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-3)
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-3, abs=1e-5)


def test_means_of_one_kind_of_answers_count_those_alone() -> None:
    """Five liked answers in two batches, of which one has none that was disliked."""
    told = [{"rewards/chosen": torch.tensor([6.0, 2.0]), "rewards/rejected": torch.tensor([1.0, 1.0])},
            {"rewards/chosen": torch.tensor([1.5, 3.0]), "rewards/rejected": torch.tensor([0.0, 0.0])}]  # fmt: skip
    expected = {"rewards/chosen": 1.5, "rewards/rejected": 1.0, "rewards/margins": 0.5}
    assert means(sums(told, torch.tensor([3, 3]))) == expected
    assert means(sums(told[1:], torch.tensor([3]))) == {"rewards/chosen": 0.5}


def test_what_is_compared_drops_nothing_by_chance(make_run: MakeRun, compared: Path, tiny_model: Path) -> None:
    """The first loss of DPO is the logarithm of 2 for a model that drops half of its attention, too."""
    folder = copy_of(tiny_model, compared / "drops")
    told = json.loads((folder / "config.json").read_text()) | {"attention_dropout": 0.5}
    (folder / "config.json").write_text(json.dumps(told))
    run = make_run("drops", *settings("dpo", compared), f"model.path={folder}", "training.max_steps=1")
    train(run)
    assert of_type(run, "step")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_reward_model_reads_the_end_of_the_answer(make_run: MakeRun, compared: Path, tiny_model: Path) -> None:
    folder = make_run("rm", *settings("rm", compared), "tuner=full", "training.max_steps=2")
    train(folder)
    head = weights(folder / "model")
    assert head["weight"].shape == (1, 64) and head["bias"].shape == (1,)
    assert not any("value_head" in name for name in head)


@pytest.mark.parametrize(("given", "code"), [
    (["stage=dpo", "data.train=[feedback.jsonl]"], "data.feedback"),
    (["stage=kto", "data.train=[pairs.jsonl]"], "data.ranking"),
    (["stage=sft", "data.train=[pairs.jsonl]"], "data.ranking"),
    (["stage=orpo", "data.train=[answers.jsonl]"], "data.answers"),
    (["stage=pt", "data.train=[answers.jsonl]"], "data.answers"),
    (["stage=rm", "data.train=[texts.jsonl]"], "data.plain"),
    (["stage=kto", "data.train=[liked.jsonl]"], "data.one_feedback"),
    (["stage=kto", "data.train=[liked.jsonl]", "data.streaming=true", "training.max_steps=2"], "data.one_feedback"),
    (["stage=dpo", "data.train=[same.jsonl]"], "data.same_answers"),
])  # fmt: skip
def test_rows_of_another_kind_are_refused_before_a_model_is_loaded(
    make_run: MakeRun, compared: Path, given: list[str], code: str
) -> None:
    write_rows(compared / "answers.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    write_rows(compared / "texts.jsonl", [{"text": "a b c"}] * 3)
    write_rows(compared / "liked.jsonl", [row for row in FEEDBACK if row["label"]])
    write_rows(compared / "same.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    folder = make_run("wrong", f"data.folder={compared}", *given)
    with pytest.raises(InputError) as caught:
        train(folder)
    assert caught.value.code == code and "load_model" not in [e["phase"] for e in of_type(folder, "phase")]


@pytest.mark.parametrize(("name", "kind"), [("pairs.jsonl", "ranking"), ("feedback.jsonl", "feedback")])
def test_a_stream_keeps_the_rows_of_an_example_together(tiny_model: Path, compared: Path, name: str, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def lessons(**more: Any) -> Any:
        data = Data(folder=str(compared), train=[name], eval_share=0, **more)
        return load(data, compared, tokenizer, 0, wanted=(kind,)).train

    pairs, stream = Pairs(lessons()), lessons(streaming=True, buffer=1)
    assert len(pairs) > 4
    for number, given in enumerate(islice(stream, 2 * len(pairs))):  # it begins anew
        if not number % len(pairs) and kind == "feedback":
            continue  # the first is compared with the one read before it, which is another now
        for row, wanted in zip(given, pairs[number % len(pairs)], strict=True):
            assert row["input_ids"].tolist() == wanted["input_ids"].tolist()
            assert row["labels"].tolist() == wanted["labels"].tolist()
            assert row.get("liked") == wanted.get("liked")


@pytest.mark.parametrize(("given", "code"), [
    (["stage=dpo", "data.streaming=true", "training.max_steps=5", "stage.precompute=true"], "data.stream_pairs"),
    (["stage=kto", "data.streaming=true", "training.max_steps=5", "tuner.kind=full"], "data.stream_pairs"),
    (["stage=kto", "data.packing=always"], "data.packing_pairs"),
    (["stage=dpo", "stage.loss=robust"], "dpo.robust"),
    (["stage=kto", "stage.liked_weight=0", "stage.disliked_weight=0"], "kto.weights"),
    (["stage=dpo", "stage.loss=ipo", "stage.label_smoothing=0.1"], "dpo.smoothing"),
])  # fmt: skip
def test_settings_that_do_not_go_together(make_run: MakeRun, given: list[str], code: str) -> None:
    with pytest.raises(InputError) as caught:
        make_run("wrong", *given)
    assert caught.value.problems[0].code == code


def test_pretraining_reads_texts_and_packs_them(make_run: MakeRun, compared: Path) -> None:
    write_rows(compared / "texts.jsonl", [{"text": "red pen for Anna " * (1 + i % 5)} for i in range(30)])
    folder = make_run("pt", "stage=pt", f"data.folder={compared}", "data.train=[texts.jsonl]", "training.max_steps=4")
    train(folder)
    told = of_type(folder, "step")
    assert told[-1]["loss"] < told[0]["loss"]
    facts = next(e for e in of_type(folder, "phase") if e["phase"] == "train")
    assert facts["params"]["rows"] == 27 and told[0]["epoch"] == 1.0  # all of them in one pack
