"""The parts of a model by the names and shapes of its weights alone: its stack of blocks, the linear layers in them.

Read from the headers of the files, or made from config.json where they are not here yet (decoder.py). Cold: neither
torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

BLOCK = re.compile(r"(.*?(?:^|\.)(?:layers|h|blocks|block|layer))\.(\d+)\.")
"""The beginning of the name of a weight of one of the repeated blocks: the stack, the number of the block."""
APART = re.compile(
    r"(^|\.)(\w*router|gate|shared_expert_gate|indexer|lm_head)(\.|$)|(vision|visual|image|img|audio|speech|resampler)"
)
"""Names of layers that choose experts (few rows would teach them to send all to one), or tokens to look at (which no
gradient reaches), of heads, eyes and ears."""
LAST = re.compile(r"(^|\.)(o_proj|out_proj|wo|dense|c_proj|down_proj|fc2|w2|dense_4h_to_h|fc_out|down|output_linear)$")
"""Layers that give back to the stream of the model what attention or the MLP computed: their input is theirs alone."""
BUFFERS = re.compile(
    r"(^|\.)(running_(mean|var)|num_batches_tracked|(?<!moe_statics\.)(?<!experts\.)e_score_correction_bias|feed_forward\.expert_bias|router_bias|ffn\.gate\.bias|balancing_biases|tid2eid"
    r"|layer_scalar|slope_rate|(query|key|diagonal)_decay|summary_idxs|global_(mean|invstd)|act_fn\.(beta|eps)"
    r"|(attn|attention)\.(masked_)?bias|inv_freq)$"
)
"""Names of what lies among the weights in the files, and does not learn."""
WHOLE_TYPE = "whole_model_type"
"""Key beside those of a config in Shapes: the model_type that the one of the text part lies over."""
OF_EXPERTS = (
    "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
    "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe", "laguna",
    "longcat_flash", "mellum", "minimax", "minimax_m2", "mixtral", "olmoe", "qwen3_moe", "qwen3_next",
    "qwen3_omni_moe", "qwen3_omni_moe_thinker", "solar_open",
)  # fmt: skip
"""Types in which peft takes the layers of any MLP, by their last names, for the experts: it would put adapters on all
of those, and none on the layers that were meant (peft 0.21, issue 3711). It loses those of Laguna's shared experts when
it loads them: it reads their names as older ones of theirs."""
MLP = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
EXPERT = re.compile(r"\.experts?\.(?!router\.)(\d+\.)?|\.(block_sparse_moe|mlp)\.(in|out)put_linear\.")
"""The second is what Granite's and JetMoE's files call them."""
ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k_experts", "moe_k")
"""Keys of config.json: how many experts work on a token."""
NUMBERS = {
    "width": ("hidden_size",), "layers": ("num_hidden_layers",), "vocabulary": ("vocab_size",),
    "inner": ("intermediate_size",), "heads": ("num_attention_heads", "n_head", "n_heads"), "head": ("head_dim",),
    "groups": ("num_key_value_heads",), "small": ("moe_intermediate_size",), "dense": ("first_k_dense_replace",),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "shared": ("n_shared_experts", "moe_num_shared_experts"), "beside": ("shared_expert_intermediate_size",),
    "latent": ("kv_lora_rank",), "latent_q": ("q_lora_rank",), "unturned": ("qk_nope_head_dim",),
    "turned": ("qk_rope_head_dim",), "value": ("v_head_dim",),
    "words_each": ("vocab_size_per_layer_input",), "each": ("hidden_size_per_layer_input",),
}  # fmt: skip
"""Keys of config.json that tell the sizes of a decoder; several where architectures differ."""
SHARED, SHARING = ".shared_transf.", ".mamba_decoder."
"""In names of Zamba's weights: of what hybrid blocks share, which files hold once, and of such blocks."""
HEADS = ("lm_head", "embed_out", "output_layer")
HEAD = re.compile(rf"(^|\.)({'|'.join(HEADS)})(\.weight)?$|^head\.weight$")
LOOKED_UP = re.compile(r"(^|\.)(w[tp]e|(?!patch_)\w*emb(ed(ding|dings|_tokens\w*|_positions)?)?)$")
"""Names of tables of which single rows are taken: they are no layers."""


@dataclass(frozen=True)
class Linear:
    """One matrix of a block, or the same matrix of all its experts."""

    name: str
    """Of the module, as in the files."""
    rows: int
    """What it gives for a token."""
    columns: int
    """What it takes of a token."""
    active: float = 1.0
    """Matrices of this kind that work on one token: 1, or the experts that are chosen."""
    count: int = 1

    @cached_property
    def last(self) -> bool:
        return bool(LAST.search(self.name))

    @cached_property
    def of_expert(self) -> bool:
        return bool(EXPERT.search(f".{self.name}."))


@dataclass(frozen=True)
class Shapes:
    """Name -> shape of every weight of a model, and what its config says of the rest."""

    tensors: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    """config.json; of a model with several parts, with that of its text part laid over it."""

    @property
    def type(self) -> str:
        """The type of the whole model."""
        return str(self.config.get(WHOLE_TYPE, self.config.get("model_type")))

    @cached_property
    def parts(self) -> frozenset[str]:
        """What stands between dots in names."""
        return frozenset(part for name in self.tensors for part in name.split("."))

    @cached_property
    def stack(self) -> str:
        """The name of the stack of text blocks; "" where there is none."""
        stacks: dict[str, int] = {}
        for name, shape in self.tensors.items():
            if (match := BLOCK.match(name)) and len(shape) > 1 and not APART.search(match[1]):
                stacks[match[1]] = stacks.get(match[1], 0) + 1
        return max(stacks, key=lambda name: ("language_model" in name, stacks[name]), default="")

    @cached_property
    def trunk(self) -> str:
        """The name of the module that holds the text blocks; "" where they lie in none."""
        return self.stack.rpartition(".")[0]

    @cached_property
    def modules(self) -> frozenset[str]:
        """The names of all modules with weights, those that hold others, too."""
        paths = (name.split(".")[:-1] for name in self.tensors)
        return frozenset(".".join(path[:end]) for path in paths for end in range(1, len(path) + 1))

    @cached_property
    def blocks(self) -> list[dict[str, tuple[int, ...]]]:
        """The weights of each text block: name -> shape."""
        found: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, shape in self.tensors.items():
            if (match := BLOCK.match(name)) and match[1] == self.stack:
                found.setdefault(int(match[2]), {})[name] = shape
        return [found[number] for number in sorted(found)]

    @cached_property
    def linears(self) -> list[list[Linear]]:
        """The linear layers of each text block."""
        return [list(self._linears(block)) for block in self.blocks]

    @cached_property
    def table(self) -> str:
        """The name of the table of embeddings: the matrix outside the blocks, and no head, with a row for each word.

        The tallest one where the config does not tell how many there are.
        """
        tables = {
            name: shape
            for name, shape in self.tensors.items()
            if len(shape) == 2 and not BLOCK.match(name) and not (APART.search(name) and name != self.head)
        }
        tallest = max((shape[0] for shape in tables.values()), default=0)
        told = self.config.get("vocab_size")
        words = told if told and isinstance(told, int) else tallest

        def likely(name: str) -> tuple[bool, bool, int, bool]:
            rows, looked_up = tables[name][0], LOOKED_UP.search(name.removesuffix(".weight"))
            return rows >= words, name != self.head, -abs(rows - words), bool(looked_up)

        return max(tables, key=likely, default="")

    @cached_property
    def embedding(self) -> tuple[int, int]:
        """(tokens, width) of the table of embeddings."""
        rows, columns = self.tensors[self.table] if self.table else (0, 0)
        return rows, columns

    @cached_property
    def head(self) -> str:
        """The name of the head's weight; "" where the embeddings serve as the head."""
        return next((name for name in self.tensors if HEAD.search(name)), "")

    @cached_property
    def layers(self) -> dict[str, tuple[int, int]]:
        """Module -> shape of every plain linear layer but the head: of blocks, of eyes and ears, and between them."""
        return {
            module: (shape[0], shape[1])
            for name, shape in self.tensors.items()
            if len(shape) == 2 and name.endswith(".weight") and name not in (self.table, self.head)
            for module in [name.removesuffix(".weight")]
            if not (LOOKED_UP.search(module) or EXPERT.search(f".{module}."))
            and f"{module.removesuffix('out_proj')}in_proj_weight" not in self.tensors  # torch's own attention
        }

    def _linears(self, block: Mapping[str, tuple[int, ...]]) -> list[Linear]:
        chosen = next((int(self.config[key]) for key in ACTIVE if isinstance(self.config.get(key), int)), 1)
        width, found = self.embedding[1], []
        experts: dict[str, list[tuple[int, int]]] = {}
        for name, shape in block.items():
            module = name.removesuffix(".weight")
            if len(shape) == 3 and EXPERT.search(f".{module}."):  # (experts, rows, columns), or columns before rows
                last = bool(LAST.search(module))
                rows, columns = shape[1:] if (shape[1] == width) is last else (shape[2], shape[1])
                found.append(Linear(module, rows, columns, chosen, shape[0]))
            elif len(shape) == 2 and name.endswith(".weight") and "norm" not in module.rpartition(".")[2]:
                rows, columns = shape if self.config.get("model_type") != "gpt2" else (shape[1], shape[0])
                if re.search(r"\.experts\.\d+\.", module):
                    experts.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", module), []).append((rows, columns))
                else:
                    found.append(Linear(module, rows, columns))
        found += [Linear(module, *sizes[0], chosen, len(sizes)) for module, sizes in experts.items()]
        return found


def taken_for_experts(model_type: str, name: str) -> bool:
    """Return whether peft would put an adapter for this layer on the experts instead."""
    return model_type.removesuffix("_text") in OF_EXPERTS and name.rpartition(".")[2] in MLP


def order(before: int, count: int) -> list[int]:
    """Return the stack after `count` new blocks, spread evenly: for each place the number of the old block it copies.

    A new block follows the one it copies.
    """
    copied = {(number + 1) * before // count - 1 for number in range(count)}
    return [index for index in range(before) for _ in range(2 if index in copied else 1)]


def fresh(places: Sequence[int]) -> list[int]:
    """Return the places of an order at which the new blocks stand."""
    return [place for place, index in enumerate(places) if place and places[place - 1] == index]


def grown(shapes: Shapes, count: int) -> Shapes:
    """Return the shapes of a model after `count` new blocks; what the old ones share, each new one has of its own."""
    blocks = shapes.blocks
    tensors = {name: shape for name, shape in shapes.tensors.items() if not name.startswith(f"{shapes.stack}.")}
    shared = {name: shape for block in blocks for name, shape in block.items() if SHARED in name}
    places = order(len(blocks), min(count, len(blocks)))
    new = fresh(places)
    for place, index in enumerate(places):
        whole = place in new and any(SHARING in name for name in blocks[index])
        for name, shape in (blocks[index] | shared if whole else blocks[index]).items():
            own = BLOCK.sub("", name, count=1)
            tensors[f"{shapes.stack}.{place}.{own}"] = shape
    return Shapes(tensors, shapes.config)


def learnable(name: str) -> bool:
    """Return whether what lies under this name in the files is a weight, and no buffer."""
    return name.endswith(".weight") or not BUFFERS.search(name)


def named(name: str, modules: Sequence[str]) -> bool:
    """Return whether a weight belongs to one of the modules, with a path as in memory or as in the files."""
    return any(f".{module}." in f".{one}." for module in modules for one in (called(name) if "." in module else [name]))


def called(name: str) -> tuple[str, str, str]:
    """Return what files and the model in memory may call a weight or a layer.

    Files may have no "model." before it, or have that within language_model.
    """
    bare = name.removeprefix("model.").replace("language_model.model.", "language_model.", 1)
    return name, bare, f"model.{bare}"
