"""Let the base and tuned models answer a set, and measure their answers against the references."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.config import Evaluated, Evaluation
from core.data.album import Album
from core.data.describe import find
from core.data.places import marked, placed
from core.data.rows import ANSWERS, examples
from core.errors import InputError, Stopped
from core.evaluation import metrics
from core.evaluation.likelihood import batches, loss
from core.events import finite
from core.formats import MEDIA
from core.models import damage, rope
from core.models.answering import Beside, Message, draw, encode, render, room, sampling
from core.models.lineup import Lineup
from core.models.senses import Senses
from core.workspace import Context, locate

SAMPLES = 5
"""Rows whose answers are shown while the rest is still being asked."""


@dataclass(frozen=True)
class Question:
    """One row: what is asked, and the answer that is right."""

    messages: list[Message]
    """With places for files (data.places)."""
    reference: str
    media: dict[str, list[str]] = field(default_factory=dict)
    """images, videos, audios -> paths in the folder of the set."""

    @property
    def text(self) -> str:
        """What is asked, for people: a lone question as it is, else every turn with its role."""
        messages = marked(self.messages)
        if len(messages) == 1:
            return messages[0]["content"]
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


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
            answers[name] = exam.answer(name, model, tokenizer, lineup.senses(name))
            measured[name] = _measure(answers[name], questions)
            if job.evaluated.perplexity:
                measured[name]["perplexity"] = exam.perplexity(name, model, tokenizer, lineup.senses(name))
        context.events.write("eval", step=0, subject=name, metrics=measured[name])
    _write(context.folder, questions, answers, measured)
    return measured


def read_questions(evaluated: Evaluated, workspace: Path) -> list[Question]:
    """Return the questions of a set: all before the last answer is asked, that answer is the reference.

    Whether a model takes their files is known once it is loaded.
    """
    folder = locate(evaluated.folder, workspace, "evaluated.folder")
    if not folder.is_dir():
        raise InputError("data.not_folder", "evaluated.folder", folder=str(folder))
    described = find(folder, evaluated.set, "evaluated.set")
    rows = examples(described, folder, "evaluated.set", wanted=ANSWERS, takes=lambda: tuple(MEDIA))
    chosen = itertools.islice(rows, evaluated.max_rows or None)
    return [
        Question(placed(row.messages(), row.media)[:-1], str(row.response[0]["content"]), row.media) for row in chosen
    ]


@dataclass(frozen=True)
class _Paper:
    """The questions as tokens."""

    prompts: list[list[int]]
    answers: list[list[int]]
    """The references with their end."""
    media: list[str]
    """What belongs to each prompt beside its tokens (data.album)."""
    album: Album

    def beside(self, indices: list[int]) -> Beside:
        """Return what gives the files of some questions to a batch."""
        return lambda starts, width: self.album.beside([self.media[index] for index in indices], starts, width)

    def cut(self, index: int, limit: int) -> list[int]:
        """Return the end of a prompt; raise InputError where it would lose a part of an image."""
        prompt = self.prompts[index]
        if self.media[index] and len(prompt) > limit:
            raise InputError(
                "evaluated.too_long", "evaluated.cutoff", number=index + 1, tokens=len(prompt), limit=limit
            )
        return prompt[-limit:]


class _Exam:
    """The questions of one evaluation, tokenised once for each tokenizer in it."""

    def __init__(self, job: Evaluation, context: Context, questions: list[Question]) -> None:
        self.job, self.context, self.questions = job, context, questions
        self._papers: dict[int, _Paper] = {}

    def answer(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, senses: Senses
    ) -> list[str]:
        """Return the answer to every question."""
        limit = min(self.job.evaluated.cutoff, room(model, self.job.generation))
        paper = self._paper(tokenizer, senses)
        prompts = [paper.cut(index, limit) for index in range(len(self.questions))]
        settings = sampling(self.job.generation, model, tokenizer)
        torch.manual_seed(self.job.generation.seed)
        answers = [""] * len(prompts)
        for indices in self._progress("answer", name, prompts):
            chosen = [prompts[index] for index in indices]
            ids_B_T = draw(model, chosen, settings, self.context.stop, beside=paper.beside(indices))
            texts = tokenizer.batch_decode(ids_B_T, skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text
        for index, question in enumerate(self.questions[:SAMPLES]):
            self.context.events.write("sample", index=index, subject=name, prompt=question.text,
                                      reference=question.reference, answer=answers[index])  # fmt: skip
        return answers

    def perplexity(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, senses: Senses
    ) -> float:
        """Return the perplexity of all reference answers, each token of them counted once."""
        context, cutoff = rope.context(model.config), self.job.evaluated.cutoff
        paper, rows = self._paper(tokenizer, senses), []
        for index, answer in enumerate(paper.answers):
            answer = answer[: context - 1]
            rows.append((paper.cut(index, min(cutoff, context - len(answer))), answer))
        total = 0.0
        for indices in self._progress("measure", name, [prompt + answer for prompt, answer in rows]):
            total += loss(model, [rows[index] for index in indices], paper.beside(indices))
        if math.isnan(total):
            damage.find(model)
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

    def _paper(self, tokenizer: PreTrainedTokenizerBase, senses: Senses) -> _Paper:
        """Return the questions as tokens of one tokenizer."""
        if id(tokenizer) not in self._papers:
            senses.check({kind for question in self.questions for kind in question.media}, "evaluated.set")
            folder = locate(self.job.evaluated.folder, self.context.workspace, "evaluated.folder")
            album = Album(senses, folder)
            prompts = [render(tokenizer, question.messages, placeholders=senses.tokens) for question in self.questions]
            pairs = zip(self.questions, prompts, strict=True)
            answers = [_ending(tokenizer, question, prompt, senses) for question, prompt in pairs]
            ids, media = encode(tokenizer, prompts), [""] * len(prompts)
            for index, question in enumerate(self.questions):
                if question.media:
                    read, media[index] = album.keep(prompts[index], question.media)
                    ids[index] = read.ids_T.tolist()
            self._papers[id(tokenizer)] = _Paper(ids, encode(tokenizer, answers), media, album)
        return self._papers[id(tokenizer)]


def _ending(tokenizer: PreTrainedTokenizerBase, question: Question, prompt: str, senses: Senses) -> str:
    """Return the text of the reference answer as the template writes it after the prompt, up to its end token."""
    answered = [*question.messages, {"role": "assistant", "content": question.reference}]
    whole = render(tokenizer, answered, ask=False, placeholders=senses.tokens)
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
