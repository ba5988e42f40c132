"""What is told of a model before a weight of it is read, and what suits it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core import config
from core.errors import InputError
from core.known import about, suits
from core.models import registry
from core.models.inspect import ModelFacts, inspect
from core.models.registry import Entry


def run_of(path: str, *settings: str) -> config.Run:
    return config.run(config.override([f"model.path={path}", *settings]))


def test_a_folder_tells_of_itself_and_what_was_written_since_is_seen(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "tiny"))
    known = about("tiny", tmp_path)
    assert known == inspect(folder)
    assert isinstance(known, ModelFacts)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = folder / "config.json"
    settings.write_text(settings.read_text().replace('"max_position_embeddings": ', '"max_position_embeddings": 9'))
    later = about("tiny", tmp_path)
    assert isinstance(later, ModelFacts)
    assert later.context == int(f"9{known.context}")


def test_the_hub_is_told_of_by_the_registry(tmp_path: Path) -> None:
    known = about("LGAI-EXAONE/EXAONE-4.0-1.2B", tmp_path)
    assert isinstance(known, Entry)
    assert (known.type, known.context) == ("exaone4", 65536)
    assert about("nobody/nothing", tmp_path) is None
    (tmp_path / "file").write_text("")
    for path, code in (("./nothing", "path.missing"), ("file", "model.no_config")):
        with pytest.raises(InputError) as caught:
            about(path, tmp_path)
        assert (caught.value.code, caught.value.place) == (code, "model.path")


def test_settings_that_suit_a_model_are_offered_until_they_are_set(tmp_path: Path) -> None:
    path = "LGAI-EXAONE/EXAONE-4.0-1.2B"
    assert suits(run_of(path), tmp_path) == {"data.thinking": "answer"}
    assert suits(run_of(path, "data.thinking=answer"), tmp_path) == {}
    assert suits(run_of("nobody/nothing"), tmp_path) == {}


def test_a_template_is_offered_where_the_model_ships_none(tiny_model: Path, tmp_path: Path) -> None:
    assert suits(run_of("bigscience/bloom-560m"), tmp_path) == {"data.template": "alpaca"}
    assert suits(run_of("bigscience/bloom-560m", "data.template=chatml"), tmp_path) == {}
    shutil.copytree(tiny_model, tmp_path / "bloom-560m")  # known by its name; this one has a template of its own
    assert inspect(tmp_path / "bloom-560m").chat_template
    assert suits(run_of("bloom-560m"), tmp_path) == {}


def test_a_rate_or_a_cutoff_that_would_hurt_the_model_is_offered_another(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "tiny")  # small models bear large steps
    assert suits(run_of("tiny", "optimizer.learning_rate=0.006", "data.cutoff=1024"), tmp_path) == {"data.cutoff": 512}
    assert suits(run_of("tiny", "data.cutoff=1024", "model.rope=yarn"), tmp_path) == {}
    path = "meta-llama/Llama-3.1-8B-Instruct"
    assert suits(run_of(path, "optimizer.learning_rate=0.006"), tmp_path) == {"optimizer.learning_rate": 2e-4}
    full = ["optimizer.learning_rate=0.0002", "tuner.kind=full"]
    assert suits(run_of(path, *full), tmp_path) == {"optimizer.learning_rate": 2e-5}
    assert suits(run_of(path), tmp_path) == {}


def test_what_the_registry_recommends_are_settings() -> None:
    for entry in registry.entries():
        config.run(config.override(entry.settings))
