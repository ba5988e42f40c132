"""The queue and the sweeps on the board: what is offered, told, shown, and what a stranger may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.cli_queue import table
from app.cli_speak import Answer
from app.form import Form
from app.lean import gr
from app.page import Page
from app.queue_panel import QueuePanel, values_told
from app.sweep_panel import panel
from app.sweeper import Sweeper
from core import config, queue, runs, sweep
from core.errors import InputError
from core.events import Writer


@pytest.fixture
def page(tmp_path: Path) -> Page:
    queue.pause(tmp_path)
    with gr.Blocks(), gr.Tabs() as tabs:
        states = [gr.State(value) for value in ("en", "", ("", 0), ("", 0), ({}, 0))]
    language, run, clone, subject, data = states
    return Page(tmp_path, language, run, tabs, clone, subject, data)


@pytest.fixture
def sweeper(page: Page) -> Sweeper:
    with gr.Blocks():
        page.language, page.run = gr.State("en"), gr.State("")
        return Sweeper(page, Form(page, config.Run))


def grid(*axes: tuple[str, str]) -> list[str]:
    """Return what the fields of the editor hold."""
    filled = [*axes, *[("", "")] * (3 - len(axes))]
    return [field for field, _ in filled] + [values for _, values in filled]


RATE, RANK = "optimizer.adamw.learning_rate", "tuner.lora.rank"


@pytest.mark.parametrize(
    ("language", "told", "label"),
    [("en", "2 × 3 = 6 runs", "Add 6 runs"), ("ru", "= 6 запусков", "6 запусков"), ("zh", "= 6 个运行", "6 个运行")],
)
def test_the_number_of_runs_is_told_before_the_press(sweeper: Sweeper, language: str, told: str, label: str) -> None:
    html, button = sweeper.tell(language, *grid((RATE, "1e-4, 3e-4"), (RANK, "4, 8, 16")), *sweeper.form.defaults())
    assert told in html and label in button["value"] and button["interactive"]


@pytest.mark.parametrize(("language", "told"), [("en", "2 runs"), ("ru", "2 запуска"), ("zh", "2 个运行")])
def test_of_one_setting_there_is_no_product(sweeper: Sweeper, language: str, told: str) -> None:
    html, _ = sweeper.tell(language, *grid((RANK, "4, 8")), *sweeper.form.defaults())
    assert html == f'<p role="status">{told}</p>'


def test_a_setting_that_is_a_list_is_swept_in_brackets(sweeper: Sweeper, page: Page) -> None:
    values = sweeper.form.defaults()
    assert "data.train" in dict((path, label) for label, path in sweeper._offer("en", None, *values)["choices"])
    assert sweeper._begin("data.train", *values)["value"] == "[orders_train]"
    sets = [["orders_train"], ["orders_train", "stories"]]
    sweeper.start(grid(("data.train", "[orders_train], [orders_train, stories]")), values)
    made = [runs.settings(folder) for folder in runs.waiting(page.workspace)]
    assert [job.data.train for job in made if isinstance(job, config.Run)] == sets
    assert values_told("en", {"data.train": sets[1]}) == "Training sets orders_train, stories"


def test_half_a_grid_is_no_error_yet_and_a_wrong_one_is(sweeper: Sweeper) -> None:
    for half in (grid(), grid((RATE, ""))):
        html, button = sweeper.tell("en", *half, *sweeper.form.defaults())
        assert (html, button["interactive"]) == ("", False)
    many = ",".join(map(str, range(65)))
    for wrong in (grid(("soup", "1")), grid((RATE, "1,[")), grid((RATE, "1e-4, x")), grid((RATE, many))):
        html, button = sweeper.tell("en", *wrong, *sweeper.form.defaults())
        assert 'role="alert"' in html and not button["interactive"]


def test_settings_are_offered_by_label_where_they_count(sweeper: Sweeper) -> None:
    values = sweeper.form.defaults()
    offered = dict((path, label) for label, path in sweeper._offer("ru", None, *values)["choices"])
    assert offered[RANK].startswith("Ранг · ") and "name" not in offered
    assert "tuner.oft.rank" not in offered and not any(path.startswith("tuner.oft") for path in offered)
    assert sweeper._begin(RANK, *values)["value"] == str(sweeper.form.read(values)[RANK])


def test_runs_are_made_and_a_bad_one_or_a_path_outside_makes_none(sweeper: Sweeper, page: Page) -> None:
    values = sweeper.form.defaults()
    zero, outside = grid((RANK, "8,0")), grid(("model.path", "/etc"))
    for bad, code in ((zero, "config.greater_than_equal"), (outside, "path.outside")):
        with pytest.raises(InputError) as raised:
            sweeper.start(bad, values)
        assert [problem.code for problem in raised.value.problems] == ["sweep.cell", code]
        assert "Rank" in sweeper.problems("en", raised.value.problems) or code == "path.outside"
    assert runs.listed(page.workspace) == []
    assert sweeper.start(grid((RATE, "1e-4,3e-4"), (RANK, "4,8")), values) == "run-1"
    assert [folder.name for folder in runs.waiting(page.workspace)] == [f"run-{n}" for n in (1, 2, 3, 4)]


def waiting(page: Page) -> tuple[QueuePanel, list[Path]]:
    axes = sweep.axes([("tuner.rank", "4,8")])
    folders = sweep.make(sweep.cells(axes, {"name": "grid"}), page.workspace)
    with gr.Blocks():
        page.language = gr.State("en")
        return QueuePanel(page), folders


def event(run: str, act: Any) -> gr.EventData:
    return gr.EventData(None, {"run": run, "act": act})


def test_the_panel_shows_the_order_and_changes_it(page: Page) -> None:
    board, folders = waiting(page)
    seen, updates = board.look("en")
    assert updates[0]["visible"] and "2 runs wait" in updates[1] and "Rank 4" in updates[1]
    assert updates[1].index(folders[0].name) < updates[1].index(folders[1].name)
    assert board.look("en")[0] == seen  # nothing new, nothing sent
    board._act("en", event(folders[1].name, "up"))
    assert list(runs.waiting(page.workspace)) == folders[::-1]
    board._act("en", event(folders[1].name, "drop"))
    for nonsense in (event("../x", "drop"), event(folders[0].name, "burn"), event(folders[0].name, None)):
        board._act("en", nonsense)
    assert list(runs.waiting(page.workspace)) == folders[:1]
    board._stops(True, "en")
    assert board._at_once(3, "en") == 3
    for wrong in (99, 0, -3, board.at_once.preprocess(1.6), None):
        with pytest.warns(UserWarning, match="16"):
            assert board._at_once(wrong, "en") == 3  # what holds is put back into the field
    assert queue.rules(page.workspace) == queue.Rules(paused=True, on_error="stop", at_once=3)
    queue.pause(page.workspace, because="one")
    assert "one failed" in board.look("en")[1][1]
    queue.drop(folders[0])
    queue._rule(page.workspace, paused=False)
    assert board.look("en")[1][0]["visible"] and "0 runs wait" in board.look("en")[1][1]  # its rules last
    for folder in folders:
        runs.delete(folder)
    assert not board.look("en")[1][0]["visible"]


def test_a_sweep_is_compared_once_one_of_its_runs_is_chosen(page: Page) -> None:
    _, folders = waiting(page)
    lone = runs.create(config.resolve({"name": "lone"}), page.workspace)
    assert panel(page, "en", lone.name) == panel(page, "en", "../x") == ""
    empty = panel(page, "en", folders[0].name)
    assert empty.count("<tr") == 3 and "<figure" not in empty
    for folder, losses in zip(folders, ([2.0, 1.5], [2.0, 0.5]), strict=True):
        writer = Writer(folder)
        for step, loss in enumerate(losses, start=1):
            writer.write("step", step=step, total=2, loss=loss)
            writer.write("eval", step=step, loss=loss, seconds=0.1)
    html = panel(page, "en", folders[0].name)
    assert html.count("<figure") == 2 and html.count("data-name=") == 4
    assert html.index(f'data-run="{folders[1].name}"') < html.index(f'data-run="{folders[0].name}"')  # the best first
    assert "Best held-out" in html and "0.5" in html


def test_values_are_told_by_the_labels_of_their_settings() -> None:
    assert values_told("ru", {"tuner.rank": 8, "tuner": "lora", "of.old": True}) == "Ранг 8 · Метод lora · of.old True"


def test_board_and_command_line_name_the_reward_that_ranks_a_sweep(
    page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = {"name": "drawn", "stage": {"kind": "grpo", "reward": {"by": "json"}}}
    folders = sweep.make(sweep.cells(sweep.axes([("tuner.rank", "4,8")]), layer), page.workspace)
    for folder, reward in zip(folders, (0.25, 0.75), strict=True):
        writer = Writer(folder)
        for step in (1, 2):
            writer.write("step", step=step, total=2, loss=0.1 + reward, metrics={"rewards/mean": reward})
    told = panel(page, "en", folders[0].name)
    assert "<th class=tb-number>Reward</th>" in told and "Best held-out" not in told
    assert told.index("drawn-2") < told.index("drawn-1") and told.count("<figure") == 2
    table("drawn", page.workspace, Answer(as_json=False))
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "Reward" and first.startswith("drawn-2") and first.endswith("0.75")
    assert second.startswith("drawn-1") and second.endswith("0.25")
