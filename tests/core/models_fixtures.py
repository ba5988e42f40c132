"""Tiny real models, adapters and job contexts, made on the spot."""

import contextlib
import threading
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.events import Writer, tail
from core.workspace import Context

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
ASK = [{"role": "user", "content": "What is Ärger & 你好?"}]


def make_tokenizer(template=TEMPLATE):
    """One token a byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SPECIALS[0], chat_template=template, additional_special_tokens=SPECIALS[1:]
    )


def make_model(folder, *, hidden=32, layers=2, seed=0, template=TEMPLATE, **config):
    """Write a random Llama with its tokenizer; weights large enough that greedy answers are no single token."""
    tokenizer = make_tokenizer(template)
    torch.manual_seed(seed)
    config = {"initializer_range": 0.4, "max_position_embeddings": 256, "tie_word_embeddings": True} | config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            **config,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def make_adapter(folder, base, *, seed=1, **settings):
    """Write a LoRA adapter with random weights on both sides, so that it changes the answers."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return Path(folder)


@contextlib.contextmanager
def context(workspace, name="job"):
    """Give a job's context with a run folder of its own; the events are closed at the end."""
    folder = Path(workspace) / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    events = Writer(folder)
    try:
        yield Context(folder, Path(workspace), events, threading.Event())
    finally:
        events.close()


def told(context, type_):
    """Return the events of one type."""
    return [event for event in tail(context.folder) if event["type"] == type_]
