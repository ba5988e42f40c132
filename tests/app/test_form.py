"""The form: every setting has a field, values go there and back, errors come to their field."""

import shutil
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from app.lean import gr  # isort: skip
from app.cli_doctor import foresee
from app.cli_speak import Answer
from app.fields import brief, element_id, make, texts
from app.form import Form
from app.i18n import table
from app.jobtab import _base
from app.page import Page
from app.settings_text import SettingsText
from app.tabs.train import _Handlers, _Recipes
from app.verdict import Verdict
from core import config, runs
from core.errors import InputError
from core.recipes import recipes


def make_page(workspace: Path) -> Page:
    with gr.Tabs() as tabs:
        return Page(
            workspace, gr.State("en"), gr.State(""), tabs, gr.State(("", 0)), gr.State(("", 0)), gr.State(("", "", 0))
        )


def make_form(workspace: Path, job=config.Run, **options) -> Form:
    with gr.Blocks():
        return Form(make_page(workspace), job, **options)


@pytest.fixture
def form(tmp_path):
    return make_form(tmp_path)


def edited(form: Form, **changes) -> list:
    """The default values with some changed, by path with __ for the dots."""
    given = dict(zip((s.path for s in form.settings), form.defaults(), strict=True))
    given |= {path.replace("__", "."): value for path, value in changes.items()}
    return list(given.values())


def places(form: Form, values) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        form.job(values)
    return {form.home(problem.place): problem.code for problem in caught.value.problems}


@pytest.mark.parametrize("kind", config.JOBS)
def test_every_setting_has_a_field(kind, tmp_path):
    form = make_form(tmp_path, config.JOBS[kind])
    assert {s.path for s in config.known_settings(config.JOBS[kind])} == set(form.fields)
    ids = [field.elem_id for field in form.fields.values()]
    assert len(set(ids)) == len(ids) and element_id(kind, "name") in ids


def test_choices_are_told_in_the_language_of_the_reader_with_the_word_that_yaml_has():
    settings = {s.path: s for s in config.known_settings(config.Run)}
    by, schedule = settings["stage.grpo.reward.by"], settings["training.schedule"]
    assert texts("ru", by)["choices"][0] == ("точное совпадение (exact)", "exact")
    assert texts("zh", schedule)["choices"][0] == ("余弦 (cosine)", "cosine")
    assert texts("ru", by)["choices"][3] == ("json", "json") and texts("en", by)["choices"][0] == ("exact", "exact")
    assert brief("ru", schedule, "cosine") == "по косинусу"
    bits = settings["model.quantizer.hqq.bits"]
    assert texts("ru", bits)["choices"][0] == ("8", 8) == make(bits, "train").choices[0]


def test_every_word_of_a_choice_is_one_that_a_setting_has():
    declared = [s.info.annotation for job in config.JOBS.values() for s in config.known_settings(job)]
    known = {str(value) for kind in declared if get_origin(kind) is Literal for value in get_args(kind)}
    assert set(table("en")["ui"]["value"]) - known == set()


@pytest.mark.parametrize("kind", config.JOBS)
def test_untouched_form_is_the_default_job(kind, tmp_path):
    form = make_form(tmp_path, config.JOBS[kind])
    assert form.job(form.defaults()) == config.JOBS[kind]()
    assert form.different(dict(zip((s.path for s in form.settings), form.defaults(), strict=True))) == []


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_goes_through_the_form(name, form):
    job = config.resolve(recipes()[name].layer)
    assert form.job(form.values(job)) == job


def test_a_kind_that_is_not_chosen_falls_away(form):
    job = form.job(edited(form, tuner="full", tuner__lora__rank=-1))
    assert job.tuner.kind == "full"


def test_skipped_fields_keep_their_default(tmp_path):
    form = make_form(tmp_path, skip=("hardware", "name"))
    assert "hardware.device" not in form.fields and "name" not in form.fields
    assert form.job(form.defaults()) == config.Run()


def test_only_some_fields(tmp_path):
    form = make_form(tmp_path, only=("training",))
    assert form.job(edited(form, training__seed=7)).training.seed == 7


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("training__batch_size", -1, "config.greater_than_equal"),
        ("training__batch_size", 1.5, "config.int_from_float"),
        ("optimizer__adamw__learning_rate", float("nan"), "config.finite_number"),
        ("optimizer__adamw__learning_rate", "fast", "config.float_parsing"),
        ("optimizer__adamw__learning_rate", None, "config.missing"),
        ("tuner__lora__rank", {"a": 1}, "config.int_type"),
        ("tuner", "unknown", "config.union_tag_invalid"),
        ("name", "../x", "config.string_pattern_mismatch"),
        ("data__train", [], "config.too_short"),
        ("data__train", 3, "config.list_type"),
        ("model__path", "/etc", "path.outside"),
        ("model__path", "../..", "path.outside"),
        ("model__path", "nowhere", "path.missing"),
        ("data__folder", "~", "path.outside"),
        ("model__precision", "fp7", "config.literal_error"),
    ],
)
def test_an_error_comes_to_its_field(form, path, value, code):
    assert places(form, edited(form, **{path: value})) == {path.replace("__", "."): code}


def test_a_hub_id_is_no_path(form):
    assert form.job(edited(form, model__path="Qwen/Qwen3-0.6B")).model.path == "Qwen/Qwen3-0.6B"


def test_all_errors_come_at_once(form):
    values = edited(form, training__batch_size=0, tuner__lora__rank=0, data__cutoff=None)
    assert set(places(form, values)) == {"training.batch_size", "tuner.lora.rank", "data.cutoff"}


def test_updates_tell_the_error_and_open_its_card(form):
    values = edited(form, training__batch_size=0)
    problems = form.problems(values)
    updates = dict(zip(map(id, form.outputs), form.updates("en", values, problems=problems, unfold=True), strict=True))
    field, card = form.fields["training.batch_size"], form.cards["training"]
    assert updates[id(field)]["info"].startswith("**“0” is too small")
    assert "value" not in updates[id(field)]
    assert updates[id(card)]["open"] and "open" not in updates[id(form.cards["model"])]
    assert updates[id(form.wrong)] == ["training.batch_size"]


def test_what_was_typed_survives_another_language(form):
    updates = form._translated("ru", [], *edited(form, name="mine"))
    assert len(updates) == len(form.outputs)
    assert not any("value" in update for update in updates[: len(form.inputs)])


def test_taking_a_change_off_sets_it_back(form):
    values = edited(form, training__seed=7, name="mine")
    updates = form._kept("en", ["name"], *values)
    given = dict(zip((s.path for s in form.settings), updates, strict=False))
    assert given["training.seed"]["value"] == 42 and given["name"]["value"] == "mine"


def test_a_recipe_names_the_run_until_somebody_does_and_stays_chosen_until_the_form_is_filled(tmp_path):
    with gr.Blocks():
        page = make_page(tmp_path)
        starts = _Recipes(page)
        form = Form(page, config.Run, begin=config.resolve(recipes()["demo"].layer), followers=[starts])
    handlers, shown = _Handlers(page, form), form.outputs.index(starts.picker)
    for before, after in (("demo-lora", "dpo"), ("sft", "sft"), ("orpo", "dpo"), ("../x", "dpo")):
        updates = handlers.fill("dpo", "en", *edited(form, name=before))
        assert dict(zip((s.path for s in form.settings), updates, strict=False))["name"]["value"] == after
        assert updates[shown] == gr.skip()
    assert form.updates("en", form.defaults(), fill=True)[shown]["value"] is None
    assert form.updates("en", form.defaults())[shown] == gr.skip()


def test_yaml_there_and_back(tmp_path):
    with gr.Blocks():
        page = make_page(tmp_path)
        text = SettingsText(page, "train")
        form = Form(page, config.Run, followers=[text])
        text.lay_out(page, form)
    values = edited(form, tuner="freeze", tuner__freeze__layers=3, training__seed=7, name="Мой b")
    written, shown, told, command = text.updates(form, "en", values, fill=True, retell=False)
    yaml, command = told["value"], command["value"]
    assert written == told == shown
    assert config.load(yaml, "x") == form.job(values)
    assert command == "tuneboard train 'name=Мой b' tuner.kind=freeze tuner.layers=3 training.seed=7"
    assert form.updates("en", values)[form.outputs.index(text.told)]["value"] == yaml
    assert "value" not in form.updates("en", values)[form.outputs.index(text.yaml)]
    assert "value" not in form.updates("ru", values, retell=True)[form.outputs.index(text.told)]
    updates = text._load(form, yaml, "en", [], *form.defaults())
    back = [update["value"] for update in updates[: len(form.inputs)]]
    assert form.job(back) == form.job(values)


@pytest.mark.parametrize(
    "text", ["tuner: [", "- a", "foo: 1", "kind: export", None, 5, "tuner: {rank: x}", "a: &x 1\nb: *x"]
)
def test_wrong_yaml_leaves_the_fields_alone(tmp_path, text):
    with gr.Blocks():
        page = make_page(tmp_path)
        panel = SettingsText(page, "train")
        form = Form(page, config.Run, followers=[panel])
    assert panel._restore(form, text, "en") == [gr.skip()] * len(form.outputs)
    updates = panel._load(form, text, "en", [], *form.defaults())
    assert not any("value" in update for update in updates[: len(form.inputs)])
    assert updates[form.outputs.index(form.note)]["value"]
    assert "value" not in updates[form.outputs.index(panel.yaml)]


@pytest.mark.parametrize("kind", ["serving", "evaluation", "export"])
def test_the_base_of_a_run_comes_with_the_way_it_was_loaded(kind, tmp_path):
    trained = {"model": {"path": "some/model", "quantizer": {"kind": "bnb_4bit", "type": "fp4"}}}
    folder = runs.create(config.resolve(trained), tmp_path)
    (folder / "adapter").mkdir()
    skip = ("model.quantizer",) if kind == "export" else ()
    form = make_form(tmp_path, config.JOBS[kind], skip=skip)
    told = _base(form, folder.name, tmp_path)
    assert told["model.path"] == "some/model" and set(told) <= set(form.fields)
    job = config.resolve(form.layer(edited(form, **{path.replace(".", "__"): value for path, value in told.items()})))
    wanted = {"kind": "none"} if kind == "export" else {"kind": "bnb_4bit", "type": "fp4"}
    assert wanted.items() <= job.model.quantizer.model_dump().items()


def test_the_verdict_says_what_is_wrong_with_a_model(tiny_model, tmp_path):
    """A model that can't be loaded is told of when it is chosen, whatever stands in its place."""
    for name in ("good", "adapter", "pickled", "wobble"):
        shutil.copytree(tiny_model, tmp_path / name)
    (tmp_path / "adapter" / "config.json").rename(tmp_path / "adapter" / "adapter_config.json")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    settings = tmp_path / "wobble" / "config.json"
    settings.write_text(settings.read_text().replace('"llama"', '"wobble"'))
    (tmp_path / "file").write_text("")
    verdict = Verdict(tmp_path)
    form = make_form(tmp_path, config.Run)
    for name, words in (
        ("good", "It fits"),
        ("adapter", "adapter"),
        ("pickled", "pytorch_model.bin"),
        ("wobble", "wobble"),
        ("file", "config.json"),
    ):
        told = verdict.updates(form, "en", edited(form, model__path=name))[0]["value"]
        assert words in told, name
        assert ("It fits" in told) == (name == "good")


def test_the_verdict_and_the_doctor_name_a_package_that_is_not_here(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # find_spec takes it for absent
    workspace = tiny_model.parent
    form = make_form(workspace, config.Run)
    values = edited(form, model__path=tiny_model.name, launcher="deepspeed")
    assert "pip install deepspeed" in Verdict(workspace).updates(form, "en", values)[0]["value"]
    with pytest.raises(InputError) as caught:
        foresee(form.job(values), workspace, Answer(as_json=True))
    assert (caught.value.code, caught.value.place) == ("package.missing", "launcher")


def test_the_verdict_says_why_there_is_none_of_a_model_outside(form, tmp_path):
    values = edited(form, model__path="/etc")
    told, brief, *_ = Verdict(tmp_path).updates(form, "en", values)
    assert "/etc lies outside the workspace" in told["value"] and not brief["value"]
    assert Verdict(tmp_path).updates(form, "en", edited(form, training__batch_size=0))[0]["value"] == ""
