"""Sweeps: the grid, what is refused before anything is made, names, and the table of what came of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from core import config, queue, runs, sweep
from core.errors import InputError
from core.events import Writer
from core.files import write_json
from tests.conftest import write_rows


@pytest.fixture
def paused(workspace: Path) -> Path:
    queue.pause(workspace)
    return workspace


@pytest.fixture
def base(tiny_model: Path, tiny_data: Path) -> dict:
    return {
        "name": "my lr",
        "model": {"path": str(tiny_model)},
        "data": {"folder": str(tiny_data), "train": ["orders"]},
    }


def refused(given: list[tuple[str, str]], *layers: dict) -> InputError:
    with pytest.raises(InputError) as raised:
        sweep.cells(sweep.axes(given), *layers)
    return raised.value


def test_every_combination_is_there_once_the_last_axis_fastest() -> None:
    given = [("optimizer.learning_rate", "1e-4, 3e-4,1e-4"), ("tuner.rank", "8,16"), ("data.packing", "auto,never")]
    found = sweep.cells(sweep.axes(given), {"tuner": {"alpha": 3.0}})
    wanted = list(itertools.product([1e-4, 3e-4], [8, 16], ["auto", "never"]))
    assert [tuple(cell.values.values()) for cell in found] == wanted
    for cell, (rate, rank, packing) in zip(found, wanted, strict=True):
        job = cell.job
        assert (job.optimizer.learning_rate, job.tuner.rank, job.data.packing) == (rate, rank, packing)
        assert job.tuner.alpha == 3.0
    assert sorted(found[0].values) == sorted(key for key, _ in given)


def test_kinds_lists_and_texts_can_be_swept() -> None:
    kinds = sweep.cells(sweep.axes([("tuner", "lora,oft")]), {"tuner": {"kind": "lora", "rank": 4}})
    assert [cell.values for cell in kinds] == [{"tuner": "lora"}, {"tuner": "oft"}]
    assert kinds[0].job.tuner.rank == 4
    lists = sweep.cells(sweep.axes([("data.train", "[a], [a, b]")]))
    assert [cell.job.data.train for cell in lists] == [["a"], ["a", "b"]]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ([], "sweep.empty"),
        ([("tuner.rank", "")], "sweep.empty"),
        ([("", "1,2")], "sweep.empty"),
        ([("name", "a,b")], "sweep.name"),
        ([("tuner.rank", "1"), ("tuner.rank", "2")], "sweep.twice"),
        ([("tuner.rank", "1,[")], "config.yaml"),
        ([("tuner.rank", ",".join(map(str, range(1, 10)))), ("training.epochs", "1,2,3,4,5,6,7,8")], "sweep.too_many"),
    ],
)
def test_what_is_no_grid_is_refused(given: list[tuple[str, str]], code: str) -> None:
    assert refused(given).code == code


def test_a_bad_cell_names_its_key_and_value() -> None:
    error = refused([("optimizer.learning_rate", "1e-4,3e-4"), ("tuner.rank", "8,0")])
    assert (error.code, error.params["cell"]) == ("sweep.cell", "tuner.rank=0")
    assert [(problem.code, problem.place) for problem in error.problems[1:]] == [
        ("config.greater_than_equal", "tuner.lora.rank")
    ]
    plain = refused([("tuner.rank", "8")], {"name": "a/b"})  # wrong without the sweep, too
    assert (plain.code, plain.place) == ("config.string_pattern_mismatch", "name")
    unknown = refused([("tuner.rnk", "8")])
    assert unknown.params["cell"] == "tuner.rnk=8" and unknown.problems[1].code == "config.unknown_key_near"


def test_nothing_is_made_where_one_of_them_would_fail(paused: Path, base: dict) -> None:
    cells = sweep.cells(sweep.axes([("data.eval", "'',nothing")]), base)
    with pytest.raises(InputError) as raised:
        sweep.make(cells, paused)
    assert (raised.value.code, raised.value.params["cell"]) == ("sweep.cell", "data.eval=['nothing']")
    assert raised.value.problems[1].place == "data.eval" and list((paused / "runs").iterdir()) == []


def test_the_runs_are_named_numbered_and_wait_in_order(paused: Path, base: dict) -> None:
    cells = sweep.cells(sweep.axes([("tuner.rank", "2,4")]), base)
    first, again = sweep.make(cells, paused), sweep.make(cells, paused)
    assert [folder.name for folder in first] == ["my-lr-1", "my-lr-2"]
    assert [folder.name for folder in again] == ["my-lr-2-1", "my-lr-2-2"]  # another sweep, not two rows more of this
    assert list(runs.waiting(paused)) == [*first, *again]
    assert [runs.settings(folder).name for folder in first] == ["my-lr-1", "my-lr-2"]
    assert [sweep.values_of(folder) for folder in first] == [{"tuner.rank": 2}, {"tuner.rank": 4}]
    assert sweep.members(sweep.name_of(first[0]), paused) == first
    runs.delete(first[0])
    assert sweep.members("my-lr", paused) == first[1:] and sweep.members("", paused) == []
    assert sweep.make(cells, paused)[0].name == "my-lr-3-1"


def test_a_long_name_leaves_room_for_its_number(paused: Path, base: dict) -> None:
    cells = sweep.cells(sweep.axes([("tuner.rank", "2,4")]), base | {"name": "x" * 60})
    made = [sweep.make(cells, paused) for _ in range(2)]
    assert all(config.load((f / "run.yaml").read_text(), "") for folders in made for f in folders)


def test_the_best_stands_first_and_none_last(paused: Path, base: dict) -> None:
    folders = sweep.make(sweep.cells(sweep.axes([("tuner.rank", "1,2,3,4")]), base), paused)
    curves = [([2.0, 1.0], [0.9, 0.5, 0.7]), ([2.0, 0.2], []), ([], []), ([2.0, 1.5], [0.4])]
    for folder, (losses, evals) in zip(folders, curves, strict=True):
        writer = Writer(folder)
        for step, loss in enumerate(losses, start=1):
            writer.write("step", step=step, total=2, loss=loss)
        for step, loss in enumerate(evals, start=1):
            named = {"set": "orders"} if len(evals) > 1 else {}  # or rows held out of the training sets
            writer.write("eval", step=step, loss=loss, seconds=0.1, **named)
        queue.drop(folder)
    write_json(folders[3] / runs.EXIT, {"cause": "done"})
    rows = sweep.ranked(sweep.row(runs.look(folder)) for folder in folders)
    assert [(row.number, row.best) for row in rows] == [(4, 0.4), (1, 0.5), (2, None), (3, None)]
    assert [row.status for row in rows] == ["done", "new", "new", "new"]
    assert rows[1].loss == pytest.approx(0.8 * 2.0 + 0.2 * 1.0) and rows[3].loss is None  # smoothed
    assert [row.step for row in rows] == [2, 2, 2, 0]


def test_runs_that_learn_from_rewards_are_ranked_by_them(paused: Path, base: dict) -> None:
    axes = sweep.axes([("stage.drawing.temperature", "0.5,1.0,1.5")])
    folders = sweep.make(sweep.cells(axes, base, {"stage": {"kind": "grpo"}}), paused)
    curves = [([0.9, 0.1], [0.1, 0.1]), ([0.9, 0.8], [0.1, 0.6]), ([], [])]  # the lower loss has the lower reward
    for folder, (losses, rewards) in zip(folders, curves, strict=True):
        writer = Writer(folder)
        for step, (loss, reward) in enumerate(zip(losses, rewards, strict=True), start=1):
            writer.write("step", step=step, total=2, loss=loss, metrics={"rewards/mean": reward})
        queue.drop(folder)
    rows = sweep.ranked(sweep.row(runs.look(folder)) for folder in folders)
    assert [row.number for row in rows] == [2, 1, 3] and {row.measure for row in rows} == {"rewards/mean"}
    assert [row.best for row in rows] == [pytest.approx(0.8 * 0.1 + 0.2 * 0.6), pytest.approx(0.1), None]
    assert sweep.judged(runs.look(folders[1])).bins[-1][1] == 0.6


@pytest.fixture
def compared(tmp_path: Path, base: dict) -> dict:
    """The base of runs that learn from comparisons, or from feedback."""
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 20
    write_rows(tmp_path / "pairs.jsonl", pairs)
    write_rows(tmp_path / "liked.jsonl", [{"prompt": "a", "completion": "b", "label": i > 9} for i in range(20)])
    return base | {"data": {"folder": str(tmp_path), "train": ["pairs.jsonl"]}}


def write_evals(folder: Path, *told: tuple[float, float]) -> Writer:
    """Tell (loss, accuracy) on held-out rows, once a step."""
    writer = Writer(folder)
    for step, (loss, right) in enumerate(told, start=1):
        metrics = {"rewards/accuracies": right}
        writer.write("step", step=step, total=len(told), loss=loss, metrics={"rewards/accuracies": 1 - right})
        writer.write("eval", step=step, set="", loss=loss, metrics=metrics, seconds=0.1)
    queue.drop(folder)
    return writer


@pytest.mark.parametrize(("given", "layer"), [
    (("stage.loss", "sigmoid,ipo,hinge,bco_pair"), {"stage": {"kind": "dpo"}}),
    (("stage", "dpo,orpo,simpo,rm"), {}),
    (("stage.beta", "0.1,0.2,0.3,0.4"), {"stage": {"kind": "kto"}, "data": {"train": ["liked.jsonl"]}}),
])  # fmt: skip
def test_runs_that_learn_preferences_are_ranked_by_what_they_get_right(
    paused: Path, compared: dict, given: tuple[str, str], layer: dict
) -> None:
    """Their losses are of another make each, so the lowest says nothing; among equals it does."""
    folders = sweep.make(sweep.cells(sweep.axes([given]), compared, layer), paused)
    write_evals(folders[0], (0.6, 0.8), (0.1, 0.6))
    write_evals(folders[1], (30.0, 0.5), (20.0, 0.9))
    best_taken = write_evals(folders[2], (0.4, 0.7), (0.5, 1.0))
    best_taken.write("saved", what="adapter", path="adapter", step=1)
    best_taken.write("saved", what="checkpoint", path="checkpoint-2", step=2)
    write_evals(folders[3], (0.5, 0.2), (0.3, 0.6))
    rows = sweep.ranked(sweep.row(runs.look(folder)) for folder in folders)
    assert [(row.number, row.best) for row in rows] == [(2, 0.9), (3, 0.7), (1, 0.6), (4, 0.6)]
    assert {row.measure for row in rows} == {"eval rewards/accuracies"}
    assert [mean for _, mean, _, _ in sweep.judged(runs.look(folders[1])).bins] == [0.5, 0.9]


def test_where_no_rows_are_held_out_those_that_learn_are_ranked_by(paused: Path, compared: dict) -> None:
    layer = {"stage": {"kind": "dpo"}, "data": {"eval_share": 0}}
    folders = sweep.make(sweep.cells(sweep.axes([("stage.beta", "0.1,0.5")]), compared, layer), paused)
    for folder, right in zip(folders, (0.5, 0.75), strict=True):
        Writer(folder).write("step", step=1, total=1, loss=right, metrics={"rewards/accuracies": right})
    rows = sweep.ranked(sweep.row(runs.look(folder)) for folder in folders)
    assert [(row.number, row.best, row.measure) for row in rows] == [
        (2, 0.75, "rewards/accuracies"), (1, 0.5, "rewards/accuracies"),
    ]  # fmt: skip
