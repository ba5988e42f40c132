"""Events: whole lines, a bounded fold, snapshots that agree with the whole story."""

import json
import math
import random

import pytest

from core import events
from core.events import Writer, fold, read
from core.series import Series


def steps(writer, first, last):
    for step in range(first, last + 1):
        writer.write("step", step=step, total=last, loss=1 / step, lr=0.1, grad_norm=1.0, tokens_per_second=9.0)


def test_what_is_written_is_read_from_any_offset(tmp_path):
    writer = Writer(tmp_path)
    writer.write("started", job="train")
    steps(writer, 1, 3)
    found, offset = read(tmp_path / events.FILE)
    assert [e["type"] for e in found] == ["started", "step", "step", "step"]
    steps(writer, 4, 4)
    found, _ = read(tmp_path / events.FILE, offset)
    assert [e["step"] for e in found] == [4]


def test_a_torn_line_waits_and_garbage_is_passed_over(tmp_path):
    path = tmp_path / events.FILE
    path.write_bytes(b'{"type":"step","time":1,"step":1}\nnot json\n[1]\n\xff\xfe\n{"type":"st')
    found, offset = read(path)
    assert len(found) == 1 and path.read_bytes()[offset:] == b'{"type":"st'
    writer = Writer(tmp_path)
    writer.write("step", step=2, total=2)
    assert [e["step"] for e in read(path)[0]] == [1, 2]


def test_nan_and_infinity_become_null(tmp_path):
    Writer(tmp_path).write("step", step=1, total=1, loss=math.nan, nested={"x": [math.inf, 1.0]})
    line = (tmp_path / events.FILE).read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["nested"] == {"x": [None, 1.0]}


def test_unknown_types_are_refused_by_the_writer_and_ignored_by_the_fold(tmp_path):
    with pytest.raises(ValueError):
        Writer(tmp_path).write("smooth", x=1)
    (tmp_path / events.FILE).write_text('{"type":"smooth","time":1}\n{"type":"step","time":2,"step":5}\n')
    assert fold(tmp_path)[0].step == 5


def test_snapshot_and_whole_story_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "SNAPSHOT_EVERY", 100)
    writer = Writer(tmp_path)
    writer.write("started", job="train")
    steps(writer, 1, 1750)
    from_snapshot, _ = fold(tmp_path)
    (tmp_path / events.SNAPSHOT).unlink()
    from_start, _ = fold(tmp_path)
    assert from_snapshot.dump() == from_start.dump()
    assert from_start.step == 1750


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"offset": 1e9, "state": {}}', '{"offset": 0, "state": {"x": 1}}'])
def test_a_bad_snapshot_is_ignored(tmp_path, text):
    writer = Writer(tmp_path)
    steps(writer, 1, 5)
    (tmp_path / events.SNAPSHOT).write_text(text)
    assert fold(tmp_path)[0].step == 5


def test_a_curve_stays_small_and_keeps_mean_and_extremes():
    random.seed(1)
    series, values = Series(capacity=64), [random.random() for _ in range(10_000)]
    for x, y in enumerate(values, 1):
        series.add(x, y)
    assert len(series.bins) <= 64 and series.bins[-1][0] == 10_000
    assert min(b[2] for b in series.bins) == min(values) and max(b[3] for b in series.bins) == max(values)
    full = series.bins[:-1]
    for number, (x, mean, low, high) in enumerate(full):
        part = values[number * series.width : (number + 1) * series.width]
        assert x == (number + 1) * series.width
        assert mean == pytest.approx(sum(part) / len(part)) and (low, high) == (min(part), max(part))


def test_the_remaining_time_follows_the_pace():
    state = events.RunState()
    for step in range(1, 6):
        state.apply({"type": "step", "time": 2.0 * step, "step": step, "total": 10})
    assert state.eta == pytest.approx(10.0)
