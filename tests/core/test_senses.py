"""Processors of several architectures: a batch of rows with files gives each row what it gets alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from transformers.models.aya_vision.processing_aya_vision import AyaVisionProcessor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from core.errors import InputError
from core.models.answering import draw
from core.models.senses import Senses, View
from tests.core.models_fixtures import SPECIALS, make_tokenizer

Made = tuple[Any, Any, str]
"""(processor, model, placeholder)."""
PATCHES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
           "image_size": 32, "patch_size": 8}  # fmt: skip
SIZE = {"height": 32, "width": 32}


def tokenizer(*tokens: str, **named: str) -> Any:
    made: Any = make_tokenizer("{{ 'x' }}")
    made.add_special_tokens({"additional_special_tokens": [*SPECIALS[1:], *tokens, *named.values()]})
    made._set_model_specific_special_tokens(special_tokens=named)
    made.pad_token = made.eos_token
    return made


def text(of: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(of), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 0,
        "eos_token_id": of.eos_token_id, "pad_token_id": of.pad_token_id, **more,
    }  # fmt: skip


def llava_next() -> Made:
    """Images in as many tiles as their shape asks for."""
    words, pins = tokenizer("<image>"), [[32, 64], [64, 32], [64, 64]]
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE, image_grid_pinpoints=pins)
    processor = hf.LlavaNextProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**PATCHES, projection_dim=32), text_config=hf.LlamaConfig(**text(words)),
        image_token_index=processor.image_token_id, image_grid_pinpoints=pins,
    )  # fmt: skip
    return processor, hf.LlavaNextForConditionalGeneration(config), "<image>"


def gemma3() -> Made:
    """A placeholder that becomes others, and a word for each token of whether it sees (token_type_ids)."""
    words = tokenizer(boi_token="<start>", eoi_token="<stop>", image_token="<soft>")
    processor = hf.Gemma3Processor(Gemma3ImageProcessorPil(size=SIZE), words, image_seq_length=4)
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**PATCHES), text_config=hf.Gemma3TextConfig(**text(words, head_dim=8)),
        mm_tokens_per_image=4, image_token_index=words.image_token_id, boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
    )  # fmt: skip
    return processor, hf.Gemma3ForConditionalGeneration(config), "<start>"


def idefics3() -> Made:
    """Pixels in a row of images for each row of tokens, padded, with a mask."""
    cells = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *cells)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = hf.Idefics3Processor(images, words, image_seq_len=4)
    config = hf.Idefics3Config(
        vision_config=PATCHES, text_config=hf.LlamaConfig(**text(words)), scale_factor=2,
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    return processor, hf.Idefics3ForConditionalGeneration(config), "<image>"


def aya_vision() -> Made:
    """An image that becomes several crops, with tokens between them."""
    words = tokenizer("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL")
    images = GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, max_patches=4, min_patches=1)
    processor = AyaVisionProcessor(images, words, patch_size=8, img_size=32, downsample_factor=2)
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**PATCHES), text_config=hf.LlamaConfig(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"), downsample_factor=2,
    )  # fmt: skip
    return processor, hf.AyaVisionForConditionalGeneration(config), "<image>"


def mllama() -> Made:
    """An image beside the tokens, seen by attention across: a mask of which token sees which tile."""
    words = tokenizer("<|image|>", "<|begin|>")
    words.bos_token = "<|begin|>"
    processor = hf.MllamaProcessor(MllamaImageProcessorPil(size=SIZE, max_image_tiles=2), words)
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 4, "image_size": 32, "patch_size": 8, "max_num_tiles": 2, "vision_output_dim": 64,
            "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4}
    told = text(words, cross_attention_layers=[1], rope_parameters=rope)
    token = words.convert_tokens_to_ids("<|image|>")
    config = hf.MllamaConfig(vision_config=seen, text_config=told, image_token_index=token)
    return processor, hf.MllamaForConditionalGeneration(config), "<|image|>"


@pytest.fixture(params=[llava_next, gemma3, idefics3, aya_vision, mllama], ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest) -> Made:
    torch.manual_seed(0)
    make: Callable[[], Made] = request.param
    processor, model, mark = make()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    return processor, model.eval(), mark


def senses(processor: Any) -> Senses:
    found = Senses(Path())
    vars(found).update(processor=processor, files=[Path()])
    return found


def views(mark: str, begin: str) -> list[View]:
    """One image; two of other shapes, of which Mllama gets one: filling up changes what it makes of earlier tokens."""
    chance = np.random.default_rng(0)
    image = lambda *shape: Image.fromarray(chance.integers(0, 255, (*shape, 3), np.uint8))  # noqa: E731
    more = [image(64, 20), image(33, 33)][: 1 if mark == "<|image|>" else 2]
    return [View(f"{begin}see {mark} this", {"images": [image(40, 60)]}),
            View(f"{begin}a" + f" {mark} and" * len(more) + "?!", {"images": more})]  # fmt: skip


def test_a_batch_gives_each_row_what_it_gets_alone(made: Made) -> None:
    """Logits of rows padded at either side, one of them without an image, against the processor and the row alone."""
    processor, model, mark = made
    own, begin = senses(processor), processor.tokenizer.bos_token or ""
    assert own.kinds == ("images",)
    seen: list[View | None] = [*views(mark, begin)]
    ids = [own.read(view).ids_T.tolist() for view in seen if view]
    if "cross_attention_mask" not in own.beside(seen, [0, 0], 99):
        seen.insert(1, None)
        ids.insert(1, processor.tokenizer(f"{begin}words alone", add_special_tokens=False)["input_ids"])
    else:
        with pytest.raises(InputError) as caught:
            own.beside([seen[0], None], [0, 0], 99)
        assert caught.value.code == "processor.mixed"
    alone = []
    for view, row in zip(seen, ids, strict=True):
        inputs = processor(text=[view.text], images=[view.files["images"]], add_special_tokens=not begin,
                           return_tensors="pt") if view else {"input_ids": torch.tensor([row])}  # fmt: skip
        assert inputs["input_ids"][0].tolist() == row
        with torch.inference_mode():
            alone.append(model(**inputs).logits[0])
    width = max(map(len, ids)) + 3
    for left in (False, True):
        starts = [width - len(row) if left else 0 for row in ids]
        batch, mask = torch.zeros(len(ids), width, dtype=torch.long), torch.zeros(len(ids), width, dtype=torch.long)
        for at, (start, row) in enumerate(zip(starts, ids, strict=True)):
            batch[at, start : start + len(row)], mask[at, start : start + len(row)] = torch.tensor(row), 1
        with torch.inference_mode():
            logits = model(input_ids=batch, attention_mask=mask, **own.beside(seen, starts, width)).logits
        for at, (start, row) in enumerate(zip(starts, ids, strict=True)):
            assert (logits[at, start : start + len(row)] - alone[at]).abs().max() < 1e-5
    other = View(seen[0].text, {"images": [Image.new("RGB", (60, 40), "white")]})  # type: ignore[union-attr]
    with torch.inference_mode():
        blank = model(input_ids=torch.tensor([ids[0]]), **own.beside([other], [0], len(ids[0]))).logits[0]
    assert (blank - alone[0]).abs().max() > 1e-3  # it does see


def test_answers_drawn_together_are_those_of_each_question(made: Made) -> None:
    processor, model, mark = made
    own, begin = senses(processor), processor.tokenizer.bos_token or ""
    seen = views(mark, begin)
    ids = [own.read(view).ids_T.tolist() for view in seen]
    end = processor.tokenizer.eos_token_id
    settings = hf.GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=end, eos_token_id=end)
    together = draw(model, ids, settings, threading.Event(), beside=lambda *place: own.beside(seen, *place))
    for view, row in zip(seen, together.tolist(), strict=True):
        inputs = processor(text=[view.text], images=[view.files["images"]], add_special_tokens=not begin,
                           return_tensors="pt")  # fmt: skip
        wanted = model.generate(**inputs, generation_config=settings)[0, inputs["input_ids"].shape[1] :].tolist()
        assert row[: len(wanted)] == wanted


def test_text_and_spans_of_what_is_read(made: Made) -> None:
    """The expanded text gives the same tokens, and what grew of a placeholder lies where it is told."""
    processor, _, mark = made
    own, begin = senses(processor), processor.tokenizer.bos_token or ""
    for view in views(mark, begin):
        read = own.read(view)
        assert processor.tokenizer(read.text, add_special_tokens=False)["input_ids"] == read.ids_T.tolist()
        short, at = "", 0
        for ended, first, last in read.grown:
            short += read.text[at:first] + mark
            at = last
            assert ended == len(short)
        assert short + read.text[at:] == view.text
