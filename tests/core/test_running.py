"""Running mean and spread: those of all numbers seen, in whatever parts they came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core.team import Team
from core.training.running import Running


@pytest.mark.parametrize("parts", [[60], [1] * 60, [1, 1, 8, 20, 30]])
def test_moments_are_those_of_all_that_was_seen(parts: list[int]) -> None:
    seen = torch.randn(60, generator=torch.Generator().manual_seed(0)) * 3 + 500
    running = Running()
    for part in seen.split(parts):
        running.add(part)
    assert running.mean == pytest.approx(seen.double().mean().item(), rel=1e-12)
    assert running.spread == pytest.approx(seen.double().std().item(), rel=1e-9)
    scaled = running.scaled(seen)
    assert scaled.mean().item() == pytest.approx(0, abs=1e-4) and scaled.std().item() == pytest.approx(1, abs=1e-4)


def test_equal_numbers_become_nothing_and_broken_ones_are_passed_over() -> None:
    running = Running()
    running.add(torch.tensor([float("nan")]))
    for _ in range(3):
        running.add(torch.tensor([0.3]))
        assert running.scaled(torch.tensor([0.3])).item() == 0
    running.add(torch.tensor([float("inf"), 0.9]))
    assert running.count == 4 and running.mean == pytest.approx(0.45)


def test_it_goes_on_with_what_a_checkpoint_knows_and_anew_with_an_old_one(tmp_path: Path) -> None:
    before, after = Running(), Running()
    before.add(torch.tensor([1.0, 4.0, 10.0]))
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"stateful_callbacks": {"Running": before.state()}}))
    after.go_on(Team(), tmp_path)
    assert after.state() == before.state() and after.spread == pytest.approx(21**0.5)
    state.write_text(json.dumps({"stateful_callbacks": {}}))
    (fresh := Running()).go_on(Team(), tmp_path)
    assert fresh.state() == Running().state()
