"""The command line with a model that sees: train on a folder of images, then ask about one."""

from __future__ import annotations

from pathlib import Path

from tests.app.test_cli import only_object, run
from tests.core.seeing import make_llava, make_pictures


def test_train_on_images_then_ask_about_one(tmp_path: Path) -> None:
    make_llava(tmp_path / "llava")
    make_pictures(tmp_path / "pictures")
    settings = ["model.path=llava", "data.folder=pictures", "data.train=[colours, pairs]", "training.max_steps=3",
                "hardware.threads=1", "hardware.device=cpu"]  # fmt: skip
    done = run("train", *settings, "--json", workspace=tmp_path)
    assert done.returncode == 0, done.stderr
    name = Path(only_object(done.stdout)["run"]).name
    short = ["-s", "generation.max_new_tokens=4", "-s", "hardware.threads=1"]
    image = tmp_path / "pictures" / "images" / "red.png"
    done = run("chat", name, "-p", "Which colour?", "-i", image, *short, "--json", workspace=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(only_object(done.stdout)["answers"]) == {"base", name}
    gone = run("chat", name, "-p", "x", "-i", tmp_path / "none.png", *short, "--json", workspace=tmp_path)
    assert gone.returncode == 2 and "chat.image" in gone.stdout and "none.png" in gone.stdout


def test_images_for_a_model_of_texts_are_refused_before_anything_starts(tmp_path: Path, tiny_model: Path) -> None:
    make_pictures(tmp_path / "pictures")
    settings = [f"model.path={tiny_model}", "data.folder=pictures", "data.train=[colours]"]
    done = run("train", *settings, "--json", workspace=tmp_path)
    assert done.returncode == 2 and "data.media" in done.stdout and not list(tmp_path.glob("runs/*"))
