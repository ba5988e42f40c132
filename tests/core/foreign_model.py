"""A model that brings code of its own: a small decoder that transformers does not have, in two files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.core.models_fixtures import make_tokenizer

TYPE = "tiny_foreign"
CONFIGURATION = """
from transformers import PreTrainedConfig


class TinyConfig(PreTrainedConfig):
    model_type = "tiny_foreign"

    def __init__(self, vocab_size=260, hidden_size=32, num_hidden_layers=2, max_position_embeddings=256, **more):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**more)
"""
MODELING = """
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_tiny import TinyConfig

Path({mark!r}).touch()


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(size)

    def forward(self, x, mask):
        y = self.norm(x)
        return x + self.o_proj(functional.scaled_dot_product_attention(
            self.q_proj(y), self.k_proj(y), self.v_proj(y), attn_mask=mask))


class TinyForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **more):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None, **more):
        B, T = input_ids.shape
        mask = torch.ones(T, T, dtype=torch.bool, device=input_ids.device).tril()[None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None].bool() | torch.eye(T, dtype=torch.bool, device=input_ids.device)
        x = self.embed_tokens(input_ids) + self.positions(torch.arange(T, device=input_ids.device))
        for layer in self.layers:
            x = layer(x, mask)
        logits = self.lm_head(x)
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutput(loss=loss, logits=logits)
"""


def make_foreign(folder, mark, **maps):
    """Write the model; its code touches `mark` when it is imported. maps: more of config.json's auto_map."""
    folder = Path(folder)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "configuration_tiny.py").write_text(CONFIGURATION)
    (folder / "modeling_tiny.py").write_text(MODELING.replace("{mark!r}", repr(str(mark))))
    classes = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
    config = {"model_type": TYPE, "architectures": ["TinyForCausalLM"], "auto_map": classes | maps, "hidden_size": 32,
              "vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 256,
              "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": False}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    shapes = {"embed_tokens.weight": (len(tokenizer), 32), "positions.weight": (256, 32),
              "lm_head.weight": (len(tokenizer), 32)}  # fmt: skip
    for layer in range(2):
        shapes |= {f"layers.{layer}.{name}_proj.weight": (32, 32) for name in "qkvo"}
        shapes |= {f"layers.{layer}.norm.{name}": (32,) for name in ("weight", "bias")}
    weights = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
