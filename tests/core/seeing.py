"""A tiny random LLaVA with its processor, images, and rows about them, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tests.conftest import write_rows
from tests.core.models_fixtures import SPECIALS, make_tokenizer

PARTS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{{ '\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As LLaVA's own: contents are lists of parts, nothing tells where answers are."""
MARKED = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% endgeneration %}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{{ '\n' }}{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
TOKENS = 16
"""Of an image: 4 x 4 patches of 8 x 8 pixels."""


def make_llava(folder: Path, *, template: str = PARTS, seed: int = 0) -> Path:
    """Write a LLaVA of two layers with eyes of two layers, hidden size 32, one token a byte."""
    tokenizer: Any = make_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIALS[1:], "<image>"]})
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size), tokenizer, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32,
                patch_size=8, projection_dim=32, initializer_range=0.2,
            ),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id, initializer_range=0.2,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_pictures(folder: Path, rows: int = 12) -> Path:
    """Write a data folder with the sets `colours` (one image a row), `talks` (three turns), `pairs` (two images)."""
    names = list(COLOURS)
    (folder / "images").mkdir(parents=True)
    for name, colour in COLOURS.items():
        noise = np.random.default_rng(0).integers(-15, 15, (40, 50, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    chosen = [names[i % 3] for i in range(rows)]
    path = "images/{}.png".format
    write_rows(folder / "colours.jsonl", [
        {"instruction": "<image>Which colour?", "output": f"It is {name}.", "images": [path(name)]} for name in chosen
    ])  # fmt: skip
    write_rows(folder / "talks.jsonl", [
        {"messages": [says("user", f"{name}?<image>"), says("assistant", f"yes {name}"), says("user", "sure"),
                      says("assistant", "very"), says("user", "and bye"), says("assistant", f"bye {name}")],
         "images": [path(name)]} for name in chosen
    ])  # fmt: skip
    write_rows(folder / "pairs.jsonl", [
        {"messages": [says("system", "Look."), says("user", "<image>and<image>: same?"), says("assistant", "no")],
         "images": [path(name), path(names[(i + 1) % 3])]} for i, name in enumerate(chosen)
    ])  # fmt: skip
    info: dict[str, Any] = {"colours": {"file_name": "colours.jsonl", "columns": {"images": "images"}}}
    info |= {name: {"file_name": f"{name}.jsonl", "formatting": "openai"} for name in ("talks", "pairs")}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def says(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def in_parts(messages: list[dict[str, str]], images: list[Image.Image]) -> list[dict[str, Any]]:
    """Return messages as processor.apply_chat_template takes them, the images in the places of <image>."""
    left, made = iter(images), []
    for message in messages:
        first, *rest = message["content"].split("<image>")
        parts: list[dict[str, Any]] = [{"type": "text", "text": first}] if first else []
        for text in rest:
            parts.append({"type": "image", "image": next(left)})
            parts += [{"type": "text", "text": text}] if text else []
        made.append({"role": message["role"], "content": parts})
    return made
