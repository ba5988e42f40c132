"""Advice from the curves: what looks wrong in them, told while there is time to act. A pure function of the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from core.events import RunState

KL, REWARD, SPREAD, LENGTH = "objective/kl", "rewards/mean", "rewards/std", "answers/length"
"""Curves of stages that reward: nats from the reference, the mean reward and its spread, tokens of an answer."""
RISING = 3
"""Evaluations in a row, each with a higher loss, that mean learning by heart."""
RECENT, LATEST = 20, 3
"""Points of a curve that say what is usual, and newest ones that are held against them."""
SPIKE, SPREADS, NOTABLE = 1.5, 6.0, 0.05
"""A loss is a spike above so many times the usual one, so many spreads (median deviations) above it, and this share of
the way between the highest and the lowest of the run."""
WORSE, ABOVE = 1.25, 5.0
"""A loss has risen if the recent points are all above the first, and their median is above so many times of it and so
many spreads above it."""
EXPLOSION = 10.0
FLAT, SWING, FLAT_STEPS, FLAT_SHARE, QUARTER = 0.01, 0.1, 40, 0.2, 64
"""A loss is flat if it changed by less than the first share, and by less than the second between, after so many points
and this share of the run; it is looked at in the first and the last quarter, of each so many points at most. A rise by
less than the first share is none."""
FAR, LONGER = 10.0, 2.0
"""Nats between the policy and its reference, and the growth of answers, from which on a reward is doubted."""
HASTE = ("coach.overfits", "coach.rises", "coach.spike", "coach.explodes", "coach.less_likely")
"""Advice against learning too much or too fast, which none to learn faster goes with."""
ALIKE = 5
"""Newest points in which all answers earned the same that make a reward useless."""


@dataclass(frozen=True)
class Advice:
    """One thing that looks wrong: the code of its text, the setting that helps, what was seen."""

    code: str
    place: str
    params: dict[str, Any]


def look(state: RunState, likelier: Sequence[str] = ()) -> list[Advice]:
    """Return what looks wrong now; likelier: the settings that keep better answers likely (Stage.likelier)."""
    told = [found for rule in RULES for found in rule(state)]
    told += _less_likely(state, likelier) if likelier else ()
    known = {found.code for found in told} | {warning["code"] for warning in state.warnings}
    return [*told, *_flat(state)] if known.isdisjoint(HASTE) else told


def values(state: RunState, name: str, part: slice = slice(None)) -> list[float]:
    """Return the means of some bins of a curve."""
    return [mean for _, mean, *_ in state.curves[name].bins[part]] if name in state.curves else []


def _losses(state: RunState) -> list[float]:
    """Return the losses; none where a reward is learned from: there they tell nothing."""
    return [] if REWARD in state.curves else values(state, "loss")


def _overfits(state: RunState) -> Iterator[Advice]:
    for name, curve in state.eval_curves.items():
        last = curve.bins[-RISING - 1 :]
        losses = [loss for _, loss, *_ in last]
        rises = len(losses) > RISING and all(a < b for a, b in pairwise(losses))
        if rises and losses[-1] - losses[0] > FLAT * abs(losses[0]):
            params = {"set": name, "count": RISING, "low": losses[0], "now": losses[-1], "step": int(last[0][0])}
            yield Advice("coach.overfits", "training.epochs", params)


def _spikes(state: RunState) -> Iterator[Advice]:
    losses = _losses(state)
    *before, now = losses[-RECENT - 1 :] or [0.0]
    if len(before) == RECENT:
        usual, spread = _spread(before)
        least = max(SPIKE * usual, usual + SPREADS * spread, usual + NOTABLE * (max(losses) - min(losses)))
        if now > least and usual > 0:
            yield Advice("coach.spike", "optimizer", {"usual": usual, "now": now, "step": state.step})


def _rises(state: RunState) -> Iterator[Advice]:
    """The loss stays above where it began: steps are so long that they undo what was known."""
    losses = _losses(state)
    if len(losses) > RECENT:
        first, latest = losses[0], losses[-RECENT:]
        usual, spread = _spread(latest)
        if min(latest) > first > 0 and usual > max(WORSE * first, first + ABOVE * spread):
            yield Advice("coach.rises", "optimizer", {"first": first, "now": usual, "step": state.step})


def _spread(losses: Sequence[float]) -> tuple[float, float]:
    """Return the median and the median distance from it."""
    usual = median(losses)
    return usual, median(abs(loss - usual) for loss in losses)


def _explodes(state: RunState) -> Iterator[Advice]:
    norms = values(state, "grad_norm", slice(-RECENT - LATEST, None))
    before, latest = norms[:-LATEST], norms[-LATEST:]
    if len(before) == RECENT and min(latest) > EXPLOSION * median(before) > 0:
        params = {"usual": median(before), "now": latest[-1], "step": state.step}
        yield Advice("coach.explodes", "training.clip", params)


def _flat(state: RunState) -> Iterator[Advice]:
    losses = _losses(state)
    count = len(losses)
    if count < FLAT_STEPS or state.step < FLAT_SHARE * state.total:
        return
    part, quarter = min(count // 4, QUARTER), count // 4
    first, now = (fmean(losses[ends]) for ends in (slice(part), slice(-part, None)))
    between = [fmean(losses[at : at + quarter]) for at in (quarter, count - 2 * quarter)]
    if abs(now - first) < FLAT * abs(first) and all(abs(mean - first) < SWING * abs(first) for mean in between):
        yield Advice("coach.flat", "optimizer", {"first": first, "now": now, "step": state.step})


def _strays(state: RunState) -> Iterator[Advice]:
    """The policy is far from its reference: what it writes may please the reward alone."""
    distances = values(state, KL, slice(-LATEST, None)) if REWARD in state.curves else []
    if len(distances) == LATEST and min(distances) > FAR:
        yield Advice("coach.strays", "stage", {"now": distances[-1], "step": state.step})


def _alike(state: RunState) -> Iterator[Advice]:
    """All answers earn the same: none of them is better than another, so there is nothing to learn."""
    spreads = values(state, SPREAD, slice(-ALIKE, None))
    if len(spreads) == ALIKE and not any(spreads):
        yield Advice("coach.alike", "stage.reward", {"reward": values(state, REWARD)[-1], "step": state.step})


def _lengthens(state: RunState) -> Iterator[Advice]:
    """Answers grow or shrink much while the reward rises: it may count their length."""
    (first, now), (before, after) = (
        [sum(values(state, name, part)) / LATEST for part in (slice(LATEST), slice(-LATEST, None))]
        for name in (LENGTH, REWARD)
    )
    long = LENGTH in state.curves and len(state.curves[LENGTH].bins) >= 2 * LATEST
    if long and after > before and first > 0 and now > 0 and not 1 / LONGER <= now / first <= LONGER:
        yield Advice("coach.lengthens", "stage", {"first": first, "now": now, "step": state.step})


def _less_likely(state: RunState, likelier: Sequence[str]) -> Iterator[Advice]:
    """The better answers lose more likelihood than the margin gains: less likely than at first, only less so."""
    chosen, margins = (values(state, f"rewards/{name}") for name in ("chosen", "margins"))
    if min(len(chosen), len(margins)) < RECENT:
        return
    (high, low), (narrow, wide) = ((curve[:LATEST], curve[-LATEST:]) for curve in (chosen, margins))
    fall, gain = sum(high) - sum(low), sum(wide) - sum(narrow)
    if max(low) < min(high) and min(wide) > max(narrow) and fall > gain:
        params = {"now": chosen[-1], "margin": margins[-1], "step": state.step, "settings": ", ".join(likelier)}
        yield Advice("coach.less_likely", "stage", params)


RULES: tuple[Callable[[RunState], Iterator[Advice]], ...] = (
    _overfits, _rises, _spikes, _explodes, _strays, _alike, _lengthens,
)  # fmt: skip
