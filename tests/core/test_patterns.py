"""Patterns that people set mean what Python says, whichever engine reads them."""

from __future__ import annotations

import re

import pytest

from core.config import resolve
from core.errors import InputError
from core.models.targets import fits
from core.patterns import compiled
from core.rewards import Reward
from core.training.judging import Answer, by_rule

PATTERNS = (
    "foxy{e}", "{e}", "x{s}", "a{i}", r"\d+{d}", "^boxed{e}$", "(?:yes){e}", "a{e<2}", "x{e<=a}", "a{e", "{d}", "x{}",
    "{i<=1}", "{1i+1d<=", "f(x){s}", r"\\{e}", r"\{e}", "[z-{e}]", "(?:a{e}b)", "a{2}{e}", r"\N{DIGIT ONE}", "x{,}",
    "x{,2}y", "(ab){2,}", r"\d{3}-\d{4}", "[[:digit:]]", "[^[:alpha:]]", "[:digit:]", r"[\[:]", "[--a]", "[a&&b]",
    r"\\boxed\{(\d+)\}", "(?i)yes{0,1}!",
)  # fmt: skip
TEXTS = (
    "", "fox", "The answer is fox", "foxy{e}", "{e}", r"\{e}", "7", "7{d}", "aaa", "a", "x{e<=a}", "no", "yes{e}",
    "5]", "[]", ":", "-", "&]", "1", "555-1234", "ababab", "y", "xxy", "aa{e}", r"\boxed{42}", "YE!", "f(x){s}", "d",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_answers_are_worth_what_python_finds_in_them(pattern: str) -> None:
    worth = by_rule(Reward(by="regex", pattern=pattern))
    assert [worth(Answer(text, "", 1)) for text in TEXTS] == [bool(re.search(pattern, text)) for text in TEXTS]


@pytest.mark.parametrize("pattern", ["(", "(?R)", r"\p{L}", "a{99999999999}", "((a{1000}){1000}){1000}"])
def test_what_no_engine_can_read_is_refused_before_a_run(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        compiled(pattern)
    with pytest.raises(InputError) as caught:
        resolve({"stage": {"kind": "grpo", "reward": {"by": "regex", "pattern": pattern}}})
    assert [(problem.code, problem.place) for problem in caught.value.problems] == [
        ("reward.pattern", "stage.grpo.reward.pattern")
    ]


def test_targets_mean_what_python_says() -> None:
    assert not fits("model.layers.0.self_attn.q_proj", r".*\.q_pro{i}")
