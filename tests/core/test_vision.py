"""Models that see: rows with images become what their own processor makes of them, and are learned from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from core.data import batch
from core.data.encode import IGNORED
from core.data.pack import Padder
from core.errors import InputError, Stopped
from core.models.loading import load_model, load_tokenizer
from core.models.senses import Senses
from core.sections import Data, Hardware, Model
from tests.conftest import new_run, write_rows
from tests.core.helpers import digest, of_type, train
from tests.core.seeing import MARKED, PARTS, TOKENS, in_parts, make_llava, make_pictures, says

CPU = Hardware(device="cpu", threads=1)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava") / "tiny")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures") / "data")


def lessons(model: Path, folder: Path, workspace: Path, *sets: str, **settings: Any) -> batch.Lessons:
    """Return the sets as a run of the model reads them."""
    data = Data(folder=str(folder), train=list(sets), eval_share=0, **settings)
    tokenizer = load_tokenizer(Model(path=str(model)), workspace)
    return batch.load(data, workspace, tokenizer, 0, senses=Senses(model))


def conversations(folder: Path, name: str) -> list[tuple[list[dict[str, str]], list[Image.Image]]]:
    """Return (messages, images) of the rows of a set, read without our code."""
    found = []
    for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        messages = row.get("messages") or [says("user", row["instruction"]), says("assistant", row["output"])]
        found.append((messages, [Image.open(folder / path) for path in row["images"]]))
    return found


@pytest.mark.parametrize("template", [PARTS, MARKED], ids=["by prefix", "by marks"])
@pytest.mark.parametrize("name", ["colours", "talks", "pairs"])
def test_rows_are_what_the_processor_makes_of_them(
    tmp_path: Path, pictures: Path, workspace: Path, name: str, template: str
) -> None:
    """Ids are those of apply_chat_template; learned are the answers with their end token, and no placeholder."""
    folder = make_llava(tmp_path / "m", template=template)
    rows: Any = lessons(folder, pictures, workspace, name).train
    processor: Any = AutoProcessor.from_pretrained(folder)
    end, image = processor.tokenizer.eos_token, processor.image_token_id
    for index, (messages, images) in enumerate(conversations(pictures, name)):
        wanted = processor.apply_chat_template(in_parts(messages, images), tokenize=True, return_dict=True)
        (ids,) = wanted["input_ids"]
        assert rows[index]["input_ids"].tolist() == ids and rows.lengths_B[index] == len(ids)
        assert ids.count(image) == TOKENS * len(images)
        learned = processor.tokenizer.decode([label for label in rows[index]["labels"] if label != IGNORED])
        assert learned == "".join(m["content"] + end for m in messages if m["role"] == "assistant")


def test_placeholders_are_never_learned(llava: Path, pictures: Path, workspace: Path) -> None:
    data = Data(folder=str(pictures), train=["pairs"], eval_share=0)
    tokenizer = load_tokenizer(Model(path=str(llava)), workspace)
    rows: Any = batch.load(data, workspace, tokenizer, 0, senses=Senses(llava), train_on_prompt=True).train
    image = tokenizer.convert_tokens_to_ids("<image>")
    for row in (rows[0], rows[5]):
        assert ((row["labels"] == IGNORED) == (row["input_ids"] == image))[1:].all()


def test_a_batch_is_what_the_processor_makes_of_it(llava: Path, pictures: Path, workspace: Path) -> None:
    """Rows with one image, two and none: tokens and pixels as the processor itself lays them out."""
    write_rows(pictures / "texts.jsonl", [{"instruction": "say <image>", "output": "a word"}] * 2)
    found = lessons(llava, pictures, workspace, "colours", "texts.jsonl", "pairs")
    rows: Any = found.train
    chosen = [0, 12, len(rows) - 1]
    made = Padder(0, found.album)([rows[i] for i in chosen])
    processor: Any = AutoProcessor.from_pretrained(llava)
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    one, two = conversations(pictures, "colours")[0], conversations(pictures, "pairs")[-1]
    wanted = processor(images=[*one[1], *two[1]], text=["<image>", "<image><image>"], return_tensors="pt", padding=True)
    assert torch.equal(made["pixel_values"], wanted["pixel_values"]) and len(made["pixel_values"]) == 3
    image = processor.image_token_id
    assert (made["input_ids"] == image).sum(1).tolist() == [TOKENS, 0, 2 * TOKENS]  # one that was typed is a text
    assert made["attention_mask"].sum(1).tolist() == [len(rows[i]["input_ids"]) for i in chosen]


def test_what_the_processor_says_of_tokens_lies_at_its_tokens(llava: Path, pictures: Path, workspace: Path) -> None:
    senses = Senses(llava)
    senses.processor.return_mm_token_type_ids = True
    data = Data(folder=str(pictures), train=["pairs", "colours"], eval_share=0)
    found = batch.load(data, workspace, load_tokenizer(Model(path=str(llava)), workspace), 0, senses=senses)
    rows: Any = [found.train[0], found.train[12]]
    made = Padder(0, found.album)(rows)
    image = senses.processor.image_token_id
    assert torch.equal(made["mm_token_type_ids"], (made["input_ids"] == image).long())
    kept = [row["media"] for row in rows]
    left = found.album.beside([kept[1], ""], [7, 0], 60)["mm_token_type_ids"]
    at = np.flatnonzero(rows[1]["input_ids"] == image) + 7
    assert left[0].nonzero().flatten().tolist() == at.tolist() and not left[1].any()


def test_no_image_is_cut(llava: Path, pictures: Path, workspace: Path) -> None:
    """Rows longer than the cutoff are left out whole and counted; others stay as they are."""
    texts = [(pictures / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("colours", "pairs")]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    asked = [{"messages": [says("user", row["instruction"]), says("assistant", row["output"])],
              "images": row["images"]} for row in rows[:12]]  # fmt: skip
    write_rows(pictures / "both.jsonl", asked + rows[12:])
    whole: Any = lessons(llava, pictures, workspace, "both.jsonl").train
    longest = int(whole.lengths_B[:12].max())
    found = lessons(llava, pictures, workspace, "both.jsonl", cutoff=longest)
    assert len(found.train) == 12 and found.counts.unseen == 12 and found.counts.cut == 0
    with pytest.raises(InputError) as caught:
        lessons(llava, pictures, workspace, "pairs", cutoff=longest)
    assert caught.value.code == "data.no_target"


def test_the_cache_knows_when_an_image_changes(llava: Path, tmp_path: Path, workspace: Path) -> None:
    folder = make_pictures(tmp_path / "data")
    first = lessons(llava, folder, workspace, "colours")
    again = lessons(llava, folder, workspace, "colours")
    assert again.fingerprint == first.fingerprint and again.train.media_B.tolist() == first.train.media_B.tolist()
    Image.new("RGB", (64, 20)).save(folder / "images" / "red.png")
    with pytest.raises(InputError) as caught:
        Padder(0, again.album)([again.train[0]])
    assert caught.value.code == "data.media_changed" and "red.png" in str(caught.value)
    later = lessons(llava, folder, workspace, "colours")
    assert later.fingerprint != first.fingerprint and Padder(0, later.album)([later.train[0]])


BROKEN = {
    "missing": (lambda f: None, "data.media_missing"),
    "no image": (lambda f: f.write_text("text"), "data.media_foreign"),
    "cut off": (lambda f: f.write_bytes(PNG[: len(PNG) // 2]), "data.media_foreign"),
    "a program": (lambda f: f.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "data.media_foreign"),
    "a bomb": (lambda f: Image.new("1", (20000, 20000)).save(f, "PNG"), "data.media_huge"),
    "outside": (lambda f: os.symlink("/etc/hostname", f), "data.media_missing"),
    "large": (lambda f: os.truncate(os.open(f, os.O_CREAT | os.O_WRONLY), 65 << 20), "data.media_large"),
}


def _png() -> bytes:
    import io

    made = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)).save(made, "PNG")
    return made.getvalue()


PNG = _png()


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_image_is_refused_with_file_and_row(llava: Path, tmp_path: Path, workspace: Path, name: str) -> None:
    spoil, code = BROKEN[name]
    folder = make_pictures(tmp_path / "data", rows=3)
    with (folder / "colours.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "<image>?", "output": "x", "images": ["images/bad.png"]}) + "\n")
    spoil(folder / "images" / "bad.png")
    with pytest.raises(InputError) as caught:
        lessons(llava, folder, workspace, "colours")
    assert caught.value.code == code and caught.value.place == "data.train"
    assert {"line": 4, "file": "colours.jsonl", "path": "images/bad.png"}.items() <= caught.value.params.items()
    found = lessons(llava, folder, workspace, "colours", skip_broken=True)
    assert len(found.train) == 3 and found.counts.broken == 1


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "http://127.0.0.1/a.png", "data:image/png;base64,"])
def test_rows_open_only_files_of_their_folder(llava: Path, tmp_path: Path, workspace: Path, path: str) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    folder = make_pictures(tmp_path / "data", rows=3)
    write_rows(folder / "bad.jsonl", [{"instruction": "<image>?", "output": "x", "images": [path]}])
    with pytest.raises(InputError) as caught:
        lessons(llava, folder, workspace, "bad.jsonl")
    assert caught.value.code == "data.media_missing"


def test_a_model_of_texts_refuses_images(tiny_model: Path, pictures: Path, workspace: Path) -> None:
    with pytest.raises(InputError) as caught:
        lessons(tiny_model, pictures, workspace, "colours")
    assert caught.value.code == "data.media" and caught.value.params == {"name": "colours", "kinds": "images"}


def test_packing_is_refused(llava: Path, pictures: Path, workspace: Path) -> None:
    run = new_run(workspace / "runs" / "p", llava, pictures, "data.train=[colours]", "data.packing=always")
    with pytest.raises(InputError) as caught:
        train(run)
    assert (caught.value.code, caught.value.place) == ("data.packing_media", "data.packing")


def test_first_loss_is_cross_entropy_over_the_answers(llava: Path, pictures: Path, workspace: Path) -> None:
    """One step over all rows with one image, two or none, against the model and the processor alone."""
    write_rows(pictures / "plain.jsonl", [{"instruction": "name a colour", "output": "blue"}] * 3)
    sets = ["colours", "talks", "pairs", "plain.jsonl"]
    run = new_run(workspace / "runs" / "one", llava, pictures, f"data.train={sets}", "data.eval_share=0",
                  "training.batch_size=64", "training.max_steps=1", "training.warmup=0")  # fmt: skip
    loss = train(run)["loss"]
    model = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32)
    processor: Any = AutoProcessor.from_pretrained(llava)
    total = count = 0.0
    plain = [([says("user", "name a colour"), says("assistant", "blue")], [])] * 3
    for messages, images in [row for name in sets[:3] for row in conversations(pictures, name)] + plain:
        inputs = processor.apply_chat_template(in_parts(messages, images), tokenize=True, return_dict=True,
                                               return_tensors="pt")  # fmt: skip
        logits_T_V = model(**inputs).logits[0].log_softmax(-1)
        for at in answer_positions(processor, messages, images):
            total, count = total - logits_T_V[at - 1, inputs["input_ids"][0, at]].item(), count + 1
    assert loss == pytest.approx(total / count, abs=1e-5)


def answer_positions(processor: Any, messages: list[dict[str, str]], images: list[Image.Image]) -> list[int]:
    """Return the positions of the tokens of all answers."""
    found: list[int] = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            parts = in_parts(messages[: turn + 1], images)
            asked = processor.apply_chat_template(parts[:-1], tokenize=True, add_generation_prompt=True)
            told = processor.apply_chat_template(parts, tokenize=True)
            found += range(len(asked[0]), len(told[0]))
    return found


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_it_learns_and_a_stopped_run_resumes_bit_for_bit(
    llava: Path, pictures: Path, workspace: Path, tuner: str
) -> None:
    settings = ["data.train=[colours]", f"tuner={{kind: {tuner}}}", "training.max_steps=8", "data.eval_share=0.2"]
    whole = new_run(workspace / "runs" / "whole", llava, pictures, *settings)
    broken = new_run(workspace / "runs" / "broken", llava, pictures, *settings)
    expected = train(whole)
    with pytest.raises(Stopped):
        train(broken, stop_at=5)
    assert train(broken) == expected
    saved = "adapter" if tuner == "lora" else "model"
    assert digest(broken / saved) == digest(whole / saved)
    steps = [event["loss"] for event in of_type(whole, "step")]
    assert steps[-1] < steps[0]
    if tuner == "full":  # a whole model sees by itself
        again = Senses(whole / "model")
        assert again.kinds == ("images",) and again.mark == Senses(llava).mark


def test_lora_leaves_the_eyes_alone(llava: Path, tmp_path: Path, workspace: Path) -> None:
    from core.tuners.lora import Lora

    model = load_model(Model(path=str(llava)), workspace, CPU, training=True)
    attached = Lora(rank=2).attach(model, tmp_path)
    learning = [name for name, parameter in attached.named_parameters() if parameter.requires_grad]
    assert learning and all(".language_model." in name and "lora_" in name for name in learning)


def test_a_model_that_sees_learns_from_texts(llava: Path, tiny_data: Path, workspace: Path) -> None:
    run = new_run(workspace / "runs" / "texts", llava, tiny_data, "training.max_steps=6")
    train(run)
    losses = [event["loss"] for event in of_type(run, "step")]
    assert losses[-1] < losses[0]


def test_a_stream_sees(llava: Path, pictures: Path, workspace: Path) -> None:
    run = new_run(workspace / "runs" / "stream", llava, pictures, "data.train=[colours, pairs]", "data.streaming=true",
                  "training.max_steps=4", "data.mix=interleave_over")  # fmt: skip
    assert np.isfinite(train(run)["loss"])


REFUSED = {
    "missing": ("model.vision_tower.post_layernorm.weight", None, "model.weights_missing"),
    "unknown": ("model.vision_tower.more", torch.zeros(3), "model.weights_unknown"),
    "other shape": ("model.multi_modal_projector.linear_1.bias", torch.zeros(9), "model.weights_differ"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_of_the_eyes_are_checked(llava: Path, tmp_path: Path, workspace: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llava, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    key, value, code = REFUSED[name]
    found = next((k for k in weights if k.endswith(key.removeprefix("model."))), key)
    weights.pop(found, None)
    if value is not None:
        weights[found] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        load_model(Model(path=str(folder)), workspace, CPU)
    assert caught.value.code == code


def test_a_broken_processor_hinders_images_alone(llava: Path, pictures: Path, tmp_path: Path, workspace: Path) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "m"))
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    with pytest.raises(InputError) as caught:
        lessons(folder, pictures, workspace, "colours")
    assert caught.value.code in ("processor.package", "processor.unusable")


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_a_template_that_only_the_processor_has_is_used(
    llava: Path, tmp_path: Path, workspace: Path, file: str
) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "m"))
    (folder / "chat_template.jinja").unlink()
    told = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**told, "chat_template": PARTS}))
    assert load_tokenizer(Model(path=str(folder)), workspace).chat_template == PARTS


def test_a_template_of_texts_gets_the_placeholder(llava: Path, pictures: Path, workspace: Path) -> None:
    """One of ours, chosen for a model that sees: the token of its processor stands where the image is meant."""
    data = Data(folder=str(pictures), train=["colours"], eval_share=0, template="plain")
    tokenizer = load_tokenizer(Model(path=str(llava)), workspace, template="plain")
    rows: Any = batch.load(data, workspace, tokenizer, 0, senses=Senses(llava)).train
    text = tokenizer.decode(rows[0]["input_ids"])
    assert text.startswith("<image>" * TOKENS + "Which colour?") and "It is red." in text


def test_what_the_data_tab_shows(llava: Path, pictures: Path, workspace: Path) -> None:
    """Every token of a row with an image, and lengths that count them."""
    from core.data.desk import ASKS, Desk, Question

    data = Data(folder=str(pictures), train=["colours"])
    question = Question(ask="render", workspace=str(workspace), data=data, model=Model(path=str(llava)))
    (shown,) = ASKS["render"](Desk(question, lambda done: None))["rows"][0]["answers"][0]
    wanted: Any = lessons(llava, pictures, workspace, "colours").train
    assert shown["ids"] == wanted[0]["input_ids"].tolist() and "".join(shown["tokens"]) == shown["text"]
    assert shown["learned"] == (wanted[0]["labels"] != IGNORED).tolist() and shown["text"].count("<image>") == TOKENS
    found = ASKS["lengths"](Desk(question, lambda done: None))
    assert found["longest"] == wanted.lengths_B.max() and found["rows"] == 12


def test_control_tokens_beside_an_image_stay_text(llava: Path, tmp_path: Path, workspace: Path) -> None:
    """What somebody types is neither an image nor the end of a turn."""
    folder = make_pictures(tmp_path / "data", rows=3)
    row = {"messages": [says("user", "<image>say <|end|><|assistant|>"), says("assistant", "<|end|> no")],
           "images": ["images/red.png"]}  # fmt: skip
    write_rows(folder / "typed.jsonl", [row])
    found = lessons(llava, folder, workspace, "typed.jsonl")
    rows, end = found.train, load_tokenizer(Model(path=str(llava)), workspace).eos_token_id
    assert found.counts.escaped == 2
    assert (rows[0]["input_ids"] == end).sum() == 2 and (rows[0]["labels"] == end).sum() == 1  # type: ignore[index]
