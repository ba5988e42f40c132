"""Let the base and tuned models answer a set, and measure their answers against the references."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.config import Evaluation
from core.data.describe import find
from core.data.rows import ANSWERS, examples
from core.errors import InputError, Stopped
from core.evaluation import metrics
from core.evaluation.likelihood import batches, loss
from core.events import finite
from core.models import rope
from core.models.answering import Message, draw, encode, render, room, sampling
from core.models.lineup import Lineup
from core.sections import Evaluated
from core.workspace import Context, locate

SAMPLES = 5
"""Rows whose answers are shown while the rest is still being asked."""


@dataclass(frozen=True)
class Question:
    """One row: what is asked, and the answer that is right."""

    messages: list[Message]
    reference: str

    @property
    def text(self) -> str:
        """What is asked, for people: a lone question as it is, else every turn with its role."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


def evaluate(job: Evaluation, context: Context) -> dict[str, Any]:
    """Ask every subject every question; return {subject: {metric: value}}.

    Writes metrics.json and answers.jsonl (index, prompt, reference, answers and exact by subject) into the run folder.
    Shares are percent. Raises InputError, and Stopped between batches.
    """
    context.events.write("phase", phase="load_data")
    questions = read_questions(job.evaluated, context.workspace)
    context.events.write("phase", phase="load_model", params={"model": job.model.path})
    lineup = Lineup(job.model, job.tuned, context.workspace, job.hardware, context.events)
    exam = _Exam(job, context, questions)
    answers: dict[str, list[str]] = {}
    measured: dict[str, dict[str, float]] = {}
    for name in lineup.names:
        tokenizer = lineup.tokenizer(name)
        with lineup.use(name) as model:
            answers[name] = exam.answer(name, model, tokenizer)
            measured[name] = _measure(answers[name], questions)
            if job.evaluated.perplexity:
                measured[name]["perplexity"] = exam.perplexity(name, model, tokenizer)
        context.events.write("eval", step=0, subject=name, metrics=measured[name])
    _write(context.folder, questions, answers, measured)
    return measured


def read_questions(evaluated: Evaluated, workspace: Path) -> list[Question]:
    """Return the questions of a set: all before the last answer is asked, that answer is the reference."""
    folder = locate(evaluated.folder, workspace, "evaluated.folder")
    if not folder.is_dir():
        raise InputError("data.not_folder", "evaluated.folder", folder=str(folder))
    described = find(folder, evaluated.set, "evaluated.set")
    rows = examples(described, folder, "evaluated.set", wanted=ANSWERS)
    chosen = itertools.islice(rows, evaluated.max_rows or None)
    return [Question(row.messages()[:-1], str(row.response[0]["content"])) for row in chosen]


class _Exam:
    """The questions of one evaluation, tokenised once for each tokenizer in it."""

    def __init__(self, job: Evaluation, context: Context, questions: list[Question]) -> None:
        self.job, self.context, self.questions = job, context, questions
        self._encoded: dict[int, tuple[list[list[int]], list[list[int]]]] = {}

    def answer(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return the answer to every question."""
        limit = min(self.job.evaluated.cutoff, room(model, self.job.generation))
        prompts = [prompt[-limit:] for prompt in self._tokens(tokenizer)[0]]
        settings = sampling(self.job.generation, model, tokenizer)
        torch.manual_seed(self.job.generation.seed)
        answers = [""] * len(prompts)
        for indices in self._progress("answer", name, prompts):
            ids_B_T = draw(model, [prompts[index] for index in indices], settings, self.context.stop)
            texts = tokenizer.batch_decode(ids_B_T, skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text
        for index, question in enumerate(self.questions[:SAMPLES]):
            self.context.events.write("sample", index=index, subject=name, prompt=question.text,
                                      reference=question.reference, answer=answers[index])  # fmt: skip
        return answers

    def perplexity(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
        """Return the perplexity of all reference answers, each token of them counted once."""
        context, cutoff = rope.context(model.config), self.job.evaluated.cutoff
        rows = []
        for prompt, answer in zip(*self._tokens(tokenizer), strict=True):
            answer = answer[: context - 1]
            rows.append((prompt[-min(cutoff, context - len(answer)) :], answer))
        total = 0.0
        for indices in self._progress("measure", name, [prompt + answer for prompt, answer in rows]):
            total += loss(model, [rows[index] for index in indices])
        return metrics.perplexity(total, sum(len(answer) for _, answer in rows))

    def _progress(self, phase: str, name: str, rows: list[list[int]]) -> Iterator[list[int]]:
        """Yield the batches of a phase and tell how far it is; raise Stopped when asked to stop."""
        events, done = self.context.events, 0
        events.write("phase", phase=phase, params={"subject": name}, total=len(rows))
        for indices in batches([len(row) for row in rows], self.job.evaluated.batch_size):
            yield indices
            if self.context.stop.is_set():
                raise Stopped("run.stopped")
            done += len(indices)
            events.write("step", step=done, total=len(rows))

    def _tokens(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
        """Return (prompts, reference answers with their end) of all questions as tokens."""
        if id(tokenizer) not in self._encoded:
            prompts = [render(tokenizer, question.messages) for question in self.questions]
            pairs = zip(self.questions, prompts, strict=True)
            answers = [_ending(tokenizer, question, prompt) for question, prompt in pairs]
            self._encoded[id(tokenizer)] = encode(tokenizer, prompts), encode(tokenizer, answers)
        return self._encoded[id(tokenizer)]


def _ending(tokenizer: PreTrainedTokenizerBase, question: Question, prompt: str) -> str:
    """Return the text of the reference answer as the template writes it after the prompt, up to its end token."""
    answered = [*question.messages, {"role": "assistant", "content": question.reference}]
    whole = render(tokenizer, answered, ask=False)
    end = str(tokenizer.eos_token)
    if not whole.startswith(prompt):  # a template that asks with words which it leaves out of a finished answer
        return question.reference + end
    answer, found, _ = whole[len(prompt) :].rpartition(end)
    return answer + found if found else whole[len(prompt) :]


def _measure(answers: list[str], questions: list[Question]) -> dict[str, float]:
    references = [question.reference for question in questions]
    return {
        "exact_match": metrics.exact_match(answers, references),
        "bleu": metrics.bleu(answers, references),
        **metrics.rouge(answers, references),
    }


def _write(
    folder: Path, questions: list[Question], answers: dict[str, list[str]], measured: dict[str, dict[str, float]]
) -> None:
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        for index, question in enumerate(questions):
            given = {name: texts[index] for name, texts in answers.items()}
            exact = {name: metrics.is_exact(text, question.reference) for name, text in given.items()}
            row = {"index": index, "prompt": question.text, "reference": question.reference, "answers": given,
                   "exact": exact}  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    aside = folder / "metrics.json.tmp"
    aside.write_text(json.dumps(finite(measured), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(folder / "metrics.json")
