"""Metrics against closed forms and the libraries' own numbers; an evaluation of real tiny models, end to end."""

import json
import math

import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM

from core.config import resolve
from core.errors import InputError, Stopped
from core.evaluation import metrics
from core.evaluation.likelihood import batches, loss
from core.evaluation.run import evaluate
from core.models.answering import encode, render
from tests.core.models_fixtures import context, make_adapter, make_model, make_tokenizer, told

ANSWERS = ["the cat sat on the mat", "a dog", "", "It is noon.", "red, green and blue"]
REFERENCES = ["the cat sat on a mat", "a dog", "nothing", "It is now noon.", "red and blue"]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    base = make_model(room / "base")
    make_adapter(room / "runs" / "tuned" / "adapter", base)
    make_model(room / "whole", seed=3)
    (room / "data").mkdir()
    rows = [{"instruction": f"Say {'very ' * (i % 5)}{i}", "output": f"number {i}"} for i in range(23)]
    (room / "data" / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    talk = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}
    (room / "data" / "unanswered.jsonl").write_text(json.dumps(talk) + "\n")
    (room / "torn").mkdir()
    (room / "torn" / "dataset_info.json").write_text("{")
    return room


def job(*layers, **evaluated):
    shared = {"model": {"path": "base"}, "tuned": ["tuned", "whole"], "generation": {"max_new_tokens": 8},
              "hardware": {"device": "cpu"},
              "evaluated": {"folder": "data", "set": "asked.jsonl", "batch_size": 4}}  # fmt: skip
    return resolve(shared, {"evaluated": evaluated}, *layers, job="evaluation")


def test_exact_match():
    assert metrics.exact_match([" a\n", "b", "c"], ["a", "B", "c"]) == pytest.approx(200 / 3)
    assert metrics.exact_match(["x"], ["x"]) == 100 and metrics.exact_match([""], ["x"]) == 0


def test_bleu_is_sacrebleus_and_closed_forms_hold():
    assert metrics.bleu(ANSWERS, REFERENCES) == sacrebleu.corpus_bleu(ANSWERS, [REFERENCES]).score
    assert metrics.bleu(REFERENCES, REFERENCES) == pytest.approx(100)
    # "a b c d e f" against "a b c d x y": precisions 4/6, 3/5, 2/4, 1/3, equal length
    wanted = 100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert metrics.bleu(["a b c d e f"], ["a b c d x y"]) == pytest.approx(wanted)


def test_rouge_is_rouge_scores_and_closed_forms_hold():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    theirs = [scorer.score(reference, answer) for answer, reference in zip(ANSWERS, REFERENCES, strict=True)]
    ours = metrics.rouge(ANSWERS, REFERENCES)
    for name, key in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        assert ours[name] == pytest.approx(100 * sum(score[key].fmeasure for score in theirs) / len(theirs))
    found = metrics.rouge(["a b c"], ["a c d e"])  # unigrams 2 of 3 and 2 of 4, no bigram, LCS a c
    assert found["rouge1"] == found["rouge_l"] == pytest.approx(100 * 4 / 7) and found["rouge2"] == 0


def test_chinese_is_counted_by_character():
    answers, references = ["今天天气很好"], ["今天天气不好"]
    assert metrics.mostly_cjk(references) and not metrics.mostly_cjk(["hello 你好"])
    assert metrics.bleu(answers, references) == sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score
    assert metrics.rouge(answers, references)["rouge1"] == pytest.approx(100 * 5 / 6)
    assert metrics.rouge(["Привет, мир"], ["Привет мир"])["rouge1"] == pytest.approx(100)


def test_perplexity_of_a_uniform_model_is_its_vocabulary(room):
    model = AutoModelForCausalLM.from_pretrained(room / "base")
    for parameter in model.parameters():
        parameter.data.zero_()
    rows = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 10]), ([1] * 9, [2])]
    assert metrics.perplexity(loss(model, rows), 7) == pytest.approx(model.config.vocab_size, rel=1e-5)
    assert metrics.perplexity(10_000, 1) == math.inf


def test_loss_of_a_batch_is_that_of_the_rows_alone(room):
    model = AutoModelForCausalLM.from_pretrained(room / "base").eval()
    rows = [([11, 12, 13], [14, 15]), ([16], [17, 18, 19, 20]), ([21] * 9, [22])]
    alone = 0.0
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        alone += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
    assert loss(model, rows) == pytest.approx(alone, rel=1e-5)


def test_batches_hold_every_row_once_and_little_padding():
    lengths = [5, 1, 9, 9, 2, 7, 1]
    found = list(batches(lengths, 3))
    assert sorted(index for batch in found for index in batch) == list(range(7))
    assert [[lengths[i] for i in batch] for batch in found] == [[9, 9, 7], [5, 2, 1], [1]]


def test_evaluation_end_to_end(room):
    with context(room, "first") as at:
        measured = evaluate(job(), at)
        assert list(measured) == ["base", "tuned", "whole"]
        assert set(measured["base"]) == {"exact_match", "bleu", "rouge1", "rouge2", "rouge_l", "perplexity"}
        rows = [json.loads(line) for line in (at.folder / "answers.jsonl").read_text().splitlines()]
        assert [row["index"] for row in rows] == list(range(23))
        assert rows[3]["reference"] == "number 3" and rows[3]["prompt"] == "Say very very very 3"
        assert json.loads((at.folder / "metrics.json").read_text()) == measured
        phases = [(event["phase"], event.get("params", {}).get("subject")) for event in told(at, "phase")]
        assert phases[2:4] == [("answer", "base"), ("measure", "base")] and len(phases) == 8
        assert told(at, "step")[-1]["step"] == told(at, "step")[-1]["total"] == 23
        assert {event["subject"] for event in told(at, "sample")} == {"base", "tuned", "whole"}
    # the answers are those of generate() on the plain model, one question at a time
    model, tokenizer = AutoModelForCausalLM.from_pretrained(room / "base"), make_tokenizer()
    for row in rows[::6]:
        ids = encode(tokenizer, [render(tokenizer, [{"role": "user", "content": row["prompt"]}])])
        out = model.generate(torch.tensor(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert row["answers"]["base"] == tokenizer.decode(out[0, len(ids[0]) :], skip_special_tokens=True)
    with context(room, "again") as at:
        assert evaluate(job(), at) == measured


def test_sampling_is_repeatable_and_depends_on_the_seed(room):
    def answers(seed):
        drawn = {"generation": {"temperature": 1.0, "seed": seed}, "tuned": []}
        with context(room, f"seed {seed}") as at:
            evaluate(job(drawn, perplexity=False, max_rows=6), at)
            return (at.folder / "answers.jsonl").read_text()

    assert answers(1) == answers(1) != answers(2)


def test_stop_between_batches(room):
    with context(room, "stopped") as at:
        at.stop.set()
        with pytest.raises(Stopped):
            evaluate(job(), at)
        assert not (at.folder / "metrics.json").exists()


@pytest.mark.parametrize("layer,code,place", [
    ({"evaluated": {"set": "unanswered.jsonl"}}, "data.no_answer", "evaluated.set"),
    ({"evaluated": {"set": "nonesuch"}}, "data.unknown_set", "evaluated.set"),
    ({"evaluated": {"folder": "nowhere"}}, "path.missing", "evaluated.folder"),
    ({"evaluated": {"folder": "base/config.json"}}, "data.not_folder", "evaluated.folder"),
    ({"evaluated": {"folder": "torn"}}, "data.description", "evaluated.folder"),
    ({"generation": {"max_new_tokens": 256}}, "generation.too_long", "generation.max_new_tokens"),
    ({"tuned": ["nobody"]}, "path.missing", "tuned"),
])  # fmt: skip
def test_refused(room, layer, code, place):
    with context(room, "refused") as at, pytest.raises(InputError) as caught:
        evaluate(job(layer), at)
    assert (caught.value.code, caught.value.place) == (code, place)


def test_questions_longer_than_the_context_lose_their_beginning(room):
    (room / "data" / "long.jsonl").write_text(json.dumps({"instruction": "x" * 1000, "output": "y" * 600}) + "\n")
    with context(room, "long") as at:
        measured = evaluate(job({"tuned": []}, set="long.jsonl"), at)
    assert math.isfinite(measured["base"]["perplexity"])
