"""The groups of settings that jobs share: model, data, training, saving, hardware, generation. Cold, like schema.py."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import field_validator, model_validator

from core.quantizers import Quantizer
from core.schema import Spec, choice, crossed, knob

DEMO_MODEL = "assets/demo/model"
DEMO_DATA = "assets/demo/data"


class Model(Spec):
    """Which model, and how it is put into memory."""

    path: str = knob(DEMO_MODEL, min_length=1, max_length=1024, pick="model")
    """Model
    A folder with a model, or a hub id such as Qwen/Qwen3-0.6B. The bundled demo model learns in a minute on any
    machine."""
    revision: str = knob("", max_length=100, expert=True)
    """Revision
    Branch, tag or commit of a hub model. Fix it to make a run repeatable. Left empty: the newest."""
    precision: Literal["auto", "bf16", "fp16", "fp32", "pure_bf16"] = knob("auto", expert=True)
    """Precision
    Number format of the computation. Auto takes bf16 where the device has it, also to train on a CPU, else fp32. What
    learns is held in fp32 all the same, but with pure_bf16, which takes half the memory and learns a little worse."""
    quantizer: Annotated[Quantizer, choice("core.quantizers")] = knob({"kind": "none"})
    """Quantization
    In how many bits the weights are held. Fewer let a larger model fit; only adapters can be trained above them."""
    rope: Literal["none", "linear", "dynamic", "yarn", "llama3"] = knob("none", expert=True)
    """Longer inputs
    How the positions of the model are stretched when rows are longer than it was made for. Yarn and llama3 keep short
    inputs best; linear wants more training."""
    context: int = knob(0, ge=0, le=1 << 24, expert=True)
    """Context
    Longest input in tokens that the model is stretched to. 0: the cutoff length of the run."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = knob(
        "auto", expert=True
    )
    """Attention
    Implementation of attention. Auto takes sdpa, the fastest that every device has, or eager for models that need it.
    Flash attention wants an NVIDIA GPU, its package and 16 bits; flex can't train on a CPU."""
    add_tokens: list[str] = knob([], max_length=10_000, expert=True)
    """New tokens
    Words that shall be one token each, such as names of your trade. They begin as an average word and are learned from
    the rows, so there should be many of each."""
    add_special_tokens: list[str] = knob([], max_length=10_000, expert=True)
    """New control tokens
    Tokens that only a chat template can write: in what people type they stay plain text."""

    @model_validator(mode="after")
    def _tokens_are_new_words(self) -> Model:
        for number, token in enumerate(self.added):
            place = "model.add_tokens" if number < len(self.add_tokens) else "model.add_special_tokens"
            if not token.strip() or not token.isprintable() or token in self.added[:number]:
                raise crossed("vocabulary.token", place, token=token)
        return self

    @property
    def added(self) -> list[str]:
        """All new tokens, in the order of their ids."""
        return [*self.add_tokens, *self.add_special_tokens]

    def at(self, folder: str) -> Model:
        """Return the settings for a whole model made from this one: it has its new tokens and positions already."""
        return self.model_copy(update={"path": folder, "revision": "", "rope": "none", "context": 0, "add_tokens": [],
                                       "add_special_tokens": []})  # fmt: skip

    @field_validator("path", mode="before")
    @classmethod
    def _of_a_page(cls, given: Any) -> Any:
        return re.sub(r"^https://huggingface\.co/([^/]+/[^/?#]+).*", r"\1", given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _wishes_go_together(self) -> Model:
        if self.context and self.rope == "none":
            raise crossed("rope.no_way", "model.context")
        if self.attention.startswith("flash") and self.precision == "fp32":
            raise crossed("attention.precision", "model.precision")
        return self


class Data(Spec):
    """Which rows, and how they are cut."""

    folder: str = knob(DEMO_DATA, min_length=1, max_length=1024, pick="data")
    """Data folder
    The folder with your files and dataset_info.json, the file that describes them."""
    train: list[str] = knob(["orders_train"], min_length=1, max_length=64, pick="set")
    """Training sets
    Names from dataset_info.json, or file names in the data folder. Several are joined."""
    eval: list[str] = knob([], max_length=16, pick="set")
    """Evaluation sets
    Rows that are never trained on and tell whether the model learns or memorises; each set has its own curve. Left
    empty, a share of the training rows is held out."""
    eval_share: float = knob(0.05, ge=0, le=0.5)
    """Held-out share
    Part of the training rows kept for evaluation when no evaluation set is named. 0 turns it off.
    Typical: 0.02 to 0.1."""
    cutoff: int = knob(512, ge=8, le=1_048_576)
    """Cutoff length
    Longest example in tokens; longer ones lose their end. Raise it when many examples are cut: memory grows with it.
    Typical: 512 to 4096."""
    max_rows: int = knob(0, ge=0)
    """Row limit
    Use only the first so many rows of each set: good for a quick try. 0 uses all."""
    template: str = knob("auto", min_length=1, max_length=100, pick="template")
    """Template
    How turns are laid out as one text. Auto takes the model's own chat template, or ChatML where it has none;
    plain sets question and answer one after the other with nothing between."""
    thinking: Literal["auto", "think", "answer", "keep"] = knob("auto", expert=True)
    """Thinking
    What the template is told about reasoning: think turns it on, answer turns it off and leaves thoughts out of the
    answers, keep asks to leave in those of earlier turns. Auto tells it nothing."""
    truncation: Literal["end", "start", "prompt"] = knob("end", expert=True)
    """Truncation
    What an example that is too long loses: its end, its start, or the middle of the question, so that the whole
    answer stays."""
    skip_broken: bool = knob(False, expert=True)
    """Skip broken rows
    Leave out rows that can't be read and count them. Off, the first one stops the run and is named."""
    mix: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = knob("concat")
    """Mixing
    How several sets are joined: one after the other, or by shares until the first set is used up (under), until all
    have been used up, the small ones repeated (over), or until all have been used up once (once)."""
    shares: list[float] = knob([], max_length=64, expert=True)
    """Shares
    How often each training set is drawn from when sets are interleaved, in their order: [0.7, 0.3]. Left empty: all
    alike."""
    packing: Literal["auto", "always", "never"] = knob("auto")
    """Packing
    Fill each place of a batch with several short examples, kept apart from each other: more speed on short rows. The
    batch size then counts places of the cutoff length. Auto packs plain texts only."""

    streaming: bool = knob(False, expert=True)
    """Streaming
    Read and encode rows while the model learns instead of before: for sets that are too large for that. Needs a step
    limit; rows are held out only if an evaluation set is named."""
    buffer: int = knob(1000, ge=1, le=1_000_000, expert=True)
    """Shuffle buffer
    Rows of a stream that wait, and of which the next is drawn by chance. More mixes better and takes more memory."""

    @field_validator("eval", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        """A name alone is a list of one: so it was written before there could be several."""
        return [name for name in [given] if name] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _sets_fit(self) -> Data:
        if set(self.eval) & set(self.train):
            raise crossed("data.eval_trained", "data.eval")
        if self.shares and len(self.shares) != len(self.train):
            raise crossed("data.shares_count", "data.shares")
        if self.shares and self.mix == "concat":
            raise crossed("data.shares_concat", "data.shares")
        if self.shares and (min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6):
            raise crossed("data.shares_sum", "data.shares")
        return self


class Training(Spec):
    """How long and how carefully the model learns."""

    epochs: float = knob(3.0, ge=0, le=10_000)
    """Epochs
    How often every row is seen. More teaches better until the evaluation loss rises. Typical: 1 to 5."""
    max_steps: int = knob(0, ge=0)
    """Step limit
    Stop after so many steps, whatever the epochs say. 0 means no limit."""
    batch_size: int = knob(8, ge=1, le=4096)
    """Batch size
    Rows computed at once. Lower it when memory runs out. Typical: 1 to 32."""
    accumulation: int = knob(1, ge=1, le=4096)
    """Gradient accumulation
    Batches summed before a step: the effective batch grows without more memory. Typical: 1 to 16."""
    schedule: Literal["cosine", "linear", "constant", "polynomial"] = knob("cosine")
    """Schedule
    How the learning rate falls after the warm-up. Cosine is a good habit; constant is easier to extend."""
    warmup: float = knob(0.05, ge=0, le=1)
    """Warm-up
    Share of the steps in which the learning rate rises from zero. Raise it when the first losses jump.
    Typical: 0 to 0.1."""
    clip: float = knob(1.0, ge=0, le=1000, expert=True)
    """Gradient clipping
    Longest gradient allowed. Lower it when the gradient norm spikes; 0 turns it off. Typical: 0.3 to 1."""
    gradient_checkpointing: bool = knob(False, expert=True)
    """Gradient checkpointing
    Compute activations twice instead of keeping them: about a third slower, far less memory on long rows."""
    s2: float = knob(0.0, ge=0, le=0.5, expert=True)
    """Shifted attention (S2)
    Learn long rows in groups of this share of the cutoff length, half of the heads shifted by half a group: much less
    work on very long rows (LongLoRA). Answers are given with full attention. 0 turns it off. Typical: 0.25."""
    router_aux_loss: float = knob(0.0, ge=0, le=10, expert=True)
    """Router balance
    In a mixture of experts: weight of the loss that keeps routers from always choosing the same experts. 0 turns it
    off. Typical: 0.001 to 0.01."""
    offload_activations: bool = knob(False, expert=True)
    """Offload activations
    Keep what the backward pass needs in the memory of the machine instead of the GPU: slower, for longer rows."""
    liger: bool = knob(False, expert=True)
    """Fused kernels (Liger)
    Compute norms, positions and gated layers in one pass each: faster, with less memory. Needs a GPU and the package
    liger-kernel."""
    upcast_norms: bool = knob(False, expert=True)
    """Norms in fp32
    Hold and compute normalization layers in fp32: steadier in 16 bits, a little slower."""
    upcast_logits: bool = knob(False, expert=True)
    """Logits in fp32
    Give the output of the head in fp32, so that the loss is exact. Takes memory with large vocabularies."""
    group_by_length: bool = knob(True, expert=True)
    """Group by length
    Put rows of similar length into a batch: less padding, more speed."""
    eval_every: int = knob(0, ge=0)
    """Evaluate every
    Steps between evaluations. 0 evaluates ten times in a run."""
    log_every: int = knob(1, ge=1, le=10_000, expert=True)
    """Log every
    Steps between points of the curves. Typical: 1 to 10."""
    seed: int = knob(42, ge=0, le=2**31 - 1, expert=True)
    """Seed
    Start of every random choice. The same seed, data and machine give the same run."""
    nan_patience: int = knob(3, ge=1, le=1000, expert=True)
    """NaN patience
    Steps in a row with an infinite or undefined loss before the run is stopped."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Training:
        if not self.epochs and not self.max_steps:
            raise crossed("training.endless", "training.epochs")
        return self


class Saving(Spec):
    """What is kept on the way, so that nothing is lost."""

    every: int = knob(0, ge=0)
    """Save every
    Steps between checkpoints. 0 saves five times in a run; a stopped run always saves."""
    keep: int = knob(2, ge=1, le=1000, expert=True)
    """Checkpoints kept
    Older ones are deleted. Each holds the weights that learn and the optimizer's state."""


class Hardware(Spec):
    """What the job runs on."""

    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto")
    """Device
    Auto takes the GPU when there is one."""
    devices: list[int] = knob([], max_length=64, expert=True)
    """GPUs
    Numbers of the GPUs that are used: [0, 1]. Left empty: one process takes the first, several take all."""
    cluster: str = knob("", pattern=r"^(https?://[\w.-]+(:\d{1,5})?(/[\w./-]*)?)?$", max_length=200, expert=True)
    """Ray cluster
    Address of the dashboard of a Ray cluster that does the job, such as http://10.0.0.1:8265. The workspace and
    Tuneboard lie at the same paths there. Left empty: this machine."""
    cluster_gpus: int = knob(0, ge=0, le=1024, expert=True)
    """GPUs of the cluster
    How many the job asks the cluster for."""
    threads: int = knob(0, ge=0, le=1024, expert=True)
    """CPU threads
    Threads of one process. Set 1 on a machine that others use, too. 0 leaves it to the machine."""
    grace: int = knob(120, ge=1, le=86_400, expert=True)
    """Grace period
    Seconds that a stopped job has to save its work before it is killed."""

    @model_validator(mode="after")
    def _devices_are_gpus(self) -> Hardware:
        if self.devices and self.device in ("cpu", "mps"):
            raise crossed("devices.none", "hardware.devices", device=self.device)
        if min(self.devices, default=0) < 0 or len(set(self.devices)) < len(self.devices):
            raise crossed("devices.twice", "hardware.devices")
        if self.devices and self.cluster:
            raise crossed("cluster.devices", "hardware.devices")
        return self
