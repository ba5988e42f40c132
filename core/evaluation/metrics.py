"""How close answers are to their references. Pure functions; shares are percent, from 0 to 100.

BLEU is sacrebleu's (Post 2018), ROUGE is rouge-score's (Lin 2004).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
LETTER = re.compile(r"[^\W\d_]")
CHARACTER = re.compile(f"[{CJK}]")
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
ROUGES = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}
"""Names in rouge-score -> names of ours."""


class _Characters(Tokenizer):
    """Words in lower case, every CJK character for itself: rouge-score's own tokenizer drops all but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


def is_exact(answer: str, reference: str) -> bool:
    """Say whether both are the same but for white space around them."""
    return answer.strip() == reference.strip()


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the percentage of answers that are exactly their reference."""
    return 100 * sum(map(is_exact, answers, references)) / len(references)


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus BLEU-4, one reference each; tokens are 13a's, or characters where the references are mostly CJK."""
    tokenizer = "zh" if mostly_cjk(references) else "13a"
    return sacrebleu.corpus_bleu(list(answers), [list(references)], tokenize=tokenizer).score


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the mean F1 in percent of ROUGE-1, ROUGE-2 and ROUGE-L.

    Texts with letters beyond a-z go through a tokenizer that keeps them; English ones through rouge-score's own.
    """
    plain = all(text.isascii() for text in references)
    scorer = RougeScorer(list(ROUGES), tokenizer=None if plain else _Characters())
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {ours: 100 * sum(s[theirs].fmeasure for s in scores) / len(scores) for theirs, ours in ROUGES.items()}


def perplexity(loss: float, tokens: int) -> float:
    """Return exp(mean negative log likelihood), from its sum over so many tokens; infinite where it is too large."""
    mean = loss / tokens
    return math.exp(mean) if mean < 700 else math.inf


def mostly_cjk(texts: Sequence[str]) -> bool:
    """Say whether more than half of the letters are Chinese, Japanese or Korean."""
    joined = "".join(texts)
    return 2 * len(CHARACTER.findall(joined)) > len(LETTER.findall(joined))
