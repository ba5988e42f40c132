"""What autograd keeps of states that go from token to token: Mamba, Mamba-2, delta rules, RG-LRU, RWKV, MiniMax.

By shapes alone, cold. Counted as transformers (5.23) writes them out in torch: token by token in Mamba, RG-LRU and
RWKV, in chunks in the others; Mamba-2 and delta rules fill those up with padding. Kernels for GPUs keep next to
nothing of it, they compute it anew; RG-LRU and MiniMax have none, and RWKV's would have to be fetched first.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from importlib.util import find_spec
from typing import Any

from core.models.shapes import NUMBERS

DECAY = "A_log"
"""The last name of the weight that tells how fast a state fades, in all of them but these:"""
RG_LRU, WKV, LIGHTNING = "rg_lru.recurrent_param", "attention.time_decay", "self_attn.output_gate.weight"
"""Ends of names of weights in the blocks of RecurrentGemma, RWKV and MiniMax."""
NORMS = ("norm.weight", "o_norm.weight")
STATES = ("state_size", "mamba_d_state", "ssm_state_size")
CHUNKS = ("chunk_size", "mamba_chunk_size")
"""Keys of config.json: the numbers in the state of a channel, and the tokens in a chunk, of Mamba-2."""
CHUNK = 64
"""Tokens in a chunk of a delta rule."""


def scan(
    block: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    cutoff: int,
    device: str,
    learns: Container[str],
    *,
    half: bool,
) -> tuple[float, float]:
    """Return bytes for a token: (that a block keeps of its states, of gradients that come and go on the way back).

    Beside what its layers give. learns: names of the weights that learn.
    """
    for name in block:
        if name.endswith((RG_LRU, WKV, LIGHTNING)):
            return _plain(name, block[name], name in learns, config, cutoff, 2 if half else 4), 0
    part = next((name.removesuffix(DECAY) for name in block if name.endswith(f".{DECAY}")), "")
    by_rule = part.endswith("attn.")
    if not part or (device == "cuda" and find_spec("fla" if by_rule else "mamba_ssm")):
        return 0, 0
    shapes = {name.removeprefix(part): shape for name, shape in block.items() if name.startswith(part)}
    width, decays = 2 if half else 4, math.prod(shapes[DECAY])
    turned = width * sum(shape[0] for name, shape in shapes.items() if name.endswith("conv1d.weight"))
    if by_rule:
        head = next((shapes[name][0] for name in NORMS if name in shapes), 0)
        kept, back = _by_channel(head) if part.endswith("self_attn.") else _by_head(head, config, width)
        filled = decays * _filled(cutoff, CHUNK)
        return turned + decays * 8 * head + filled * kept, filled * back
    if (ways := len(shapes[DECAY])) > 1:  # two factors of each step, the state after it; Zamba copies for its heads
        return (12 if width == 4 else 14) * decays + 2 * ways * turned, 12 * decays
    state, chunk = _number(config, STATES), _number(config, CHUNKS)
    inner, normed = shapes.get("out_proj.weight", (0,))[-1], NORMS[0] in shapes
    scores = decays * chunk * (4 + 2 * width)
    states = decays * state * (4 + 4 * width) + inner * width * (3 + 2 * state / chunk)
    return (scores + states) * _filled(cutoff, chunk) + 2 * turned + 4 * inner * (1 + normed), 0


def _plain(name: str, shape: tuple[int, ...], learns: bool, config: Mapping[str, Any], cutoff: int, width: int) -> int:
    """Return the bytes for a token that RG-LRU, RWKV and MiniMax keep; learns: whether the weight of this name does."""
    if name.endswith(LIGHTNING):  # scores within a chunk; queries, keys and values cut out of one matrix
        chunk = min(cutoff, _number(config, ("block_size",)))
        return width * (_number(config, NUMBERS["heads"]) * chunk + 5 * shape[0])
    inner = math.prod(shape)
    if name.endswith(RG_LRU):  # two gates, what they let through, the state in fp32
        return inner * (8 + (9 + 2 * learns) * width)
    return inner * (48 + (2 + 6 * learns) * width)  # numerators, denominators and their maxima in fp32; what is mixed


def _by_head(head: int, config: Mapping[str, Any], width: int) -> tuple[float, float]:
    """Return the same for a head of a gated delta rule (Qwen3-Next): pairs of a chunk, keys and values, a state."""
    key = _number(config, ("linear_key_head_dim",))
    pairs, states = CHUNK * (8 + 3 * width), key * head * width / CHUNK
    return pairs + states + key * (24 + 5.5 * width) + head * (8 + width), 0


def _by_channel(head: int) -> tuple[float, float]:
    """Return the same where each channel fades in its own way (Kimi): products of all pairs, what solves them."""
    products = 4 * CHUNK * head
    return 3 * products + 4 * (CHUNK**2 / 3 + 2 * CHUNK + 16 * head), 2 * products


def _number(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), 1)


def _filled(cutoff: int, chunk: int) -> float:
    """Return how many tokens are computed for one, where rows are filled up to whole chunks."""
    return -(-cutoff // chunk) * chunk / cutoff
