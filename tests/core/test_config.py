"""Settings: layers, overrides, errors at their place, a dump that comes back."""

import math
import pickle

import pytest

from core import config, yamls
from core.errors import InputError
from core.recipes import recipe, recipes
from core.texts import texts
from core.workspace import jailed, locate


@pytest.mark.parametrize("kind", list(config.JOBS))
def test_defaults_survive_a_dump(kind):
    job = config.resolve({"kind": kind})
    assert config.load(config.dump(job), "run.yaml") == job


def test_a_dump_keeps_the_chosen_variant():
    job = config.resolve({"tuner": {"kind": "freeze", "layers": 3}})
    assert config.load(config.dump(job), "run.yaml").tuner == job.tuner


def test_later_layers_win_and_another_kind_drops_the_old_fields():
    layer = {"tuner": {"kind": "lora", "rank": 4}, "training": {"epochs": 2}}
    job = config.resolve(layer, config.override(["tuner.kind=full", "training.batch_size=2"]))
    assert (job.tuner.kind, job.training.epochs, job.training.batch_size) == ("full", 2, 2)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("optimizer.learning_rate=1e-4", 1e-4),
        ("optimizer.learning_rate= 1e-4 ", 1e-4),
        ("data.train=[a, b]", ["a", "b"]),
        ("data.train=a,b", ["a", "b"]),
        ("name=123", "123"),
        ("name='yes'", "yes"),
        ("model.path=[a-e] #b", "[a-e] #b"),
        ("model.path={.*}", "{.*}"),
        ("name='a=b'", None),
    ],
)
def test_override_reads_yaml(assignment, value):
    if value is None:
        with pytest.raises(InputError):
            config.resolve(config.override([assignment]))
        return
    job = config.resolve(config.override([assignment])).model_dump()
    for part in assignment.partition("=")[0].split("."):
        job = job[part]
    assert job == value


WRONG = {
    "unknown key": ({"tuner": {"rnk": 8}}, "tuner.lora.rnk", "config.unknown_key_near"),
    "unknown section": ({"zzz": 1}, "zzz", "config.unknown_key"),
    "NaN learning rate": (
        {"optimizer": {"learning_rate": math.nan}},
        "optimizer.adamw.learning_rate",
        "config.finite_number",
    ),
    "infinite learning rate": (
        {"optimizer": {"learning_rate": "inf"}},
        "optimizer.adamw.learning_rate",
        "config.finite_number",
    ),
    "learning rate of 0": (
        {"optimizer": {"kind": "lomo", "learning_rate": 0}},
        "optimizer.lomo.learning_rate",
        "config.greater_than",
    ),
    "negative learning rate": (
        {"optimizer": {"learning_rate": -1}},
        "optimizer.adamw.learning_rate",
        "config.greater_than",
    ),
    "word for a number": (
        {"optimizer": {"learning_rate": "abc"}},
        "optimizer.adamw.learning_rate",
        "config.float_parsing",
    ),
    "negative batch": ({"training": {"batch_size": -1}}, "training.batch_size", "config.greater_than_equal"),
    "half a batch": ({"training": {"batch_size": 1.5}}, "training.batch_size", "config.int_from_float"),
    "rank 0": ({"tuner": {"rank": 0}}, "tuner.lora.rank", "config.greater_than_equal"),
    "huge rank": ({"tuner": {"rank": 10**9}}, "tuner.lora.rank", "config.less_than_equal"),
    "unknown tuner": ({"tuner": {"kind": "magic"}}, "tuner", "config.union_tag_invalid"),
    "unknown precision": ({"model": {"precision": "fp1"}}, "model.precision", "config.literal_error"),
    "context that nothing is stretched to": ({"model": {"context": 1024}}, "model.context", "rope.no_way"),
    "stream without end": ({"data": {"streaming": True}}, "training.max_steps", "data.stream_endless"),
    "shares": ({"data": {"mix": "interleave_over", "shares": [0.5, 0.5]}}, "data.shares", "data.shares_count"),
    "shares sum": ({"data": {"mix": "interleave_over", "shares": [0.5]}}, "data.shares", "data.shares_sum"),
    "shares below 0": (
        {"data": {"train": ["a", "b"], "mix": "interleave_over", "shares": [-0.5, 1.5]}},
        "data.shares",
        "data.shares_sum",
    ),
    "shares without mixing": ({"data": {"shares": [1.0]}}, "data.shares", "data.shares_concat"),
    "shares NaN": ({"data": {"shares": [float("nan")]}}, "data.shares.0", "config.finite_number"),
    "no end": ({"training": {"epochs": 0}}, "training.epochs", "training.endless"),
    "no sets": ({"data": {"train": []}}, "data.train", "config.too_short"),
    "a set for a section": ({"training": [1]}, "training", "config.model_type"),
    "name with a path": ({"name": "../x"}, "name", "config.string_pattern_mismatch"),
    "name with a newline": ({"name": "x\ny"}, "name", "config.string_pattern_mismatch"),
    "empty name": ({"name": ""}, "name", "config.string_too_short"),
    "null": ({"training": {"seed": None}}, "training.seed", "config.int_type"),
    "seed too large": ({"training": {"seed": 2**40}}, "training.seed", "config.less_than_equal"),
    "unknown job": ({"kind": "fly"}, "kind", "config.job"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_has_code_place_and_text(case):
    layer, place, code = WRONG[case]
    with pytest.raises(InputError) as raised:
        config.resolve(layer)
    problem = raised.value.problems[0]
    assert (problem.place, problem.code) == (place, code)
    assert "{" not in str(problem) and str(problem).endswith((".", "?"))


def test_every_problem_is_told_at_once_and_travels_between_processes():
    with pytest.raises(InputError) as raised:
        config.resolve({"tuner": {"rank": 0, "rnk": 1}, "training": {"epochs": -1}})
    assert len(raised.value.problems) == 3
    assert pickle.loads(pickle.dumps(raised.value)).problems == raised.value.problems


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system [touch PWNED]",
        "a: 1\na: 2",
        "a: &x [1]\nb: *x",
        "a:\n\t- 1",
        "- a\n- b",
        "just words",
        "1: a",
        "a: {b: 1",
        "[" * 3000,
    ],
)
def test_yaml_runs_nothing_and_hides_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        config.load(text, "run.yaml")
    assert "run.yaml" in str(raised.value)
    assert not (tmp_path / "PWNED").exists()


def test_too_large_a_file_is_not_parsed():
    with pytest.raises(InputError) as raised:
        yamls.value("a" * (yamls.MAX_BYTES + 1), "run.yaml")
    assert raised.value.code == "config.too_big"


@pytest.mark.parametrize("name", list(recipes()))
def test_every_recipe_resolves_and_says_what_it_is(name):
    config.resolve(recipe(name).layer)
    assert recipe(name).label and recipe(name).help


def test_every_setting_explains_itself():
    for cls in config.JOBS.values():
        for setting in config.known_settings(cls):
            assert setting.label and setting.help, setting.path


def test_texts_have_no_gaps():
    def walk(node, path):
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{path}.{key}")
            else:
                assert value, f"{path}.{key}"

    found = texts()
    walk({key: value for key, value in found.items() if key != "job"}, "")


def test_the_key_is_the_path_without_kinds():
    keys = {setting.path: setting.key for setting in config.known_settings(config.Run)}
    assert keys["tuner.lora.rank"] == "tuner.rank" and keys["training.seed"] == "training.seed"


@pytest.mark.parametrize("path", ["x" * 3000, "a\0b", "~nobody-of-this-name/x"])
def test_paths_that_no_system_takes_are_missing(path, tmp_path):
    for find in (locate, jailed):
        with pytest.raises(InputError) as caught:
            found = find(path, tmp_path, place="model.path")
            locate(str(found), tmp_path, "model.path")
        assert caught.value.code == "path.missing" and len(caught.value.params["path"]) <= 100


def test_a_choice_may_be_named_without_its_kind():
    for layer in (config.override(["tuner=freeze", "tuner.layers=1"]), {"tuner": "freeze"}):
        assert config.run(layer).tuner.kind == "freeze"
    made = config.run(config.override(["model.quantizer=bnb_8bit", "model.quantizer.threshold=5"]))
    assert made.model.quantizer.model_dump() == {"kind": "bnb_8bit", "threshold": 5.0}
    with pytest.raises(InputError) as caught:
        config.run({"tuner": {"dora": True}, "model": {"quantizer": "bnb_8bit"}})
    assert (caught.value.code, caught.value.place) == ("quantizer.dora", "tuner.lora.dora")


@pytest.mark.parametrize(
    "given", ["https://huggingface.co/Qwen/Qwen3-0.6B", "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main"]
)
def test_the_page_of_a_model_names_it(given):
    assert config.run(config.override([f"model.path={given}"])).model.path == "Qwen/Qwen3-0.6B"
