"""Models that hear: the same way as for images, where soundfile and soxr are installed; a refusal by name where not."""

from __future__ import annotations

import struct
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from core.data import batch
from core.data.pack import Padder
from core.errors import InputError
from core.models.loading import load_tokenizer
from core.models.senses import Senses
from core.sections import Data, Model
from tests.conftest import new_run, write_rows
from tests.core.helpers import of_type, train
from tests.core.models_fixtures import SPECIALS, make_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'audio' %}<|AUDIO|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HERE = find_spec("soundfile") is not None and find_spec("soxr") is not None


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2-Audio."""
    folder = tmp_path_factory.mktemp("ears") / "tiny"
    words: Any = make_tokenizer(TEMPLATE)
    extra = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    words.add_special_tokens({"additional_special_tokens": [*SPECIALS[1:], *extra]})
    listener = hf.WhisperFeatureExtractor(feature_size=16)
    processor = hf.Qwen2AudioProcessor(feature_extractor=listener, tokenizer=words, chat_template=TEMPLATE)
    config = hf.Qwen2AudioConfig(
        audio_config={"num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4,
                      "encoder_ffn_dim": 64, "max_source_positions": 1500},
        text_config={"model_type": "qwen2", "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "max_position_embeddings": 1024, "eos_token_id": words.eos_token_id},
        audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    hf.Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A data folder with tones of 0.5 and 1 seconds at 8,000 Hz."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name, pitch, seconds in (("low", 220, 0.5), ("high", 880, 1.0)):
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            tone = (np.sin(np.arange(int(8000 * seconds)) * pitch * 2 * np.pi / 8000) * 20000).astype(int)
            file.writeframes(struct.pack(f"<{len(tone)}h", *tone))
    rows = [{"instruction": "<audio>Which tone?", "output": name, "audios": [f"{name}.wav"]} for name in
            ("low", "high") * 4]  # fmt: skip
    write_rows(folder / "tones.jsonl", rows)
    return folder


def lessons(ears: Path, sounds: Path, workspace: Path) -> batch.Lessons:
    data = Data(folder=str(sounds), train=["tones.jsonl"], eval_share=0)
    tokenizer = load_tokenizer(Model(path=str(ears)), workspace)
    return batch.load(data, workspace, tokenizer, 0, senses=Senses(ears))


@pytest.mark.skipif(HERE, reason="soundfile and soxr are installed")
def test_without_the_packages_sounds_are_refused_by_name(ears: Path, sounds: Path, workspace: Path) -> None:
    with pytest.raises(InputError) as caught:
        lessons(ears, sounds, workspace)
    assert caught.value.code == "package.missing" and caught.value.params["package"] in ("soundfile", "soxr")


@pytest.mark.skipif(not HERE, reason="soundfile and soxr are not installed")
def test_rows_with_sounds(ears: Path, sounds: Path, workspace: Path) -> None:
    """Tokens and inputs are those of the processor given the sounds by another reader; the run learns."""
    from transformers.audio_utils import load_audio

    found = lessons(ears, sounds, workspace)
    rows: Any = found.train
    processor: Any = hf.AutoProcessor.from_pretrained(ears)
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    end = processor.tokenizer.eos_token
    texts = [f"<|user|><|AUDIO|>Which tone?{end}<|assistant|>{name}{end}" for name in ("low", "high")]
    heard = [load_audio(str(sounds / f"{name}.wav"), sampling_rate=16000) for name in ("low", "high")]
    wanted = processor(text=texts, audio=heard, padding=True, padding_side="right", return_tensors="pt")
    made = Padder(processor.tokenizer.pad_token_id, found.album)([rows[0], rows[1]])
    assert {"input_features", "feature_attention_mask"} <= made.keys()
    for name, value in wanted.items():
        assert torch.equal(made[name], value), name
    run = new_run(workspace / "runs" / "ears", ears, sounds, "data.train=[tones.jsonl]", "training.max_steps=6")
    train(run)
    losses = [event["loss"] for event in of_type(run, "step")]
    assert losses[-1] < losses[0]


@pytest.mark.skipif(not HERE, reason="soundfile and soxr are not installed")
def test_a_bad_sound_is_refused_with_file_and_row(ears: Path, sounds: Path, workspace: Path) -> None:
    (sounds / "high.wav").write_bytes(b"RIFF no sound")
    with pytest.raises(InputError) as caught:
        lessons(ears, sounds, workspace)
    assert caught.value.code == "data.media_sound" and caught.value.params["line"] == 2
