"""LoRA and its kin (Hu et al., arXiv 2106.09685): small added matrices learn, the base stays."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, LiteralString

from pydantic import field_validator, model_validator

from core.errors import InputError
from core.files import aside
from core.models import added
from core.models.inspect import inspect_adapter
from core.models.jsons import read_json
from core.models.shapes import Linear, Shapes, named, taken_for_experts
from core.models.tables import ends
from core.models.targets import check_layers, check_names, check_targets, ending, held, numbers, targeted, within
from core.schema import crossed, knob
from core.tuners import Rows, Tuner, quantized
from core.workspace import tuned

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER, CONFIG = "default", "adapter_config.json"


class Lora(Tuner):
    """LoRA
    Small matrices beside the frozen weights learn. Light, quick and easy to swap: right for most cases."""

    kind: Literal["lora"] = "lora"
    usual_rate: ClassVar[float] = 2e-4
    rank: int = knob(16, ge=1, le=1024)
    """Rank
    Width of the added matrices. Raise it when the skill is rich and the rows are many. Typical: 8 to 64."""
    alpha: float = knob(32.0, gt=0, le=8192)
    """Alpha
    Strength of the adapter: what it adds is scaled by alpha / rank. Typical: once or twice the rank."""
    dropout: float = knob(0.0, ge=0, lt=1)
    """Dropout
    Share of the adapter's input dropped in training. Raise it when few rows are learned by heart. Typical: 0 to 0.1."""
    targets: list[str] = knob(["all-linear"], min_length=1, max_length=64, expert=True)
    """Targets
    Names of the layers that get an adapter, for example q_proj and v_proj, or regular expressions of whole names: .*
    means the same as all-linear. Only linear layers of the text part are meant; heads, tables of tokens, what chooses
    experts, and what sees or hears must be named: lm_head, embed_tokens, .*vision_tower.*q_proj."""
    layers: str = knob("", max_length=1000, coerce_numbers_to_str=True, expert=True)
    """Layers
    Numbers of the layers of the text part that get an adapter, from 0 on: 0-3,6. Left empty: all."""
    extra: list[str] = knob([], max_length=64, expert=True)
    """Modules that learn whole
    Names such as embed_tokens, lm_head or norm, which are trained and saved beside the adapter and get none."""
    rslora: bool = knob(False, expert=True)
    """rsLoRA
    Scale by alpha / √rank instead (arXiv 2312.03732). Turn it on for ranks above 64."""
    dora: bool = knob(False, expert=True)
    """DoRA
    Learn length and direction of the weights apart (arXiv 2402.09353): often a little better, clearly slower."""
    pissa: bool = knob(False, expert=True)
    """PiSSA
    Begin with the principal parts of the weights (arXiv 2404.02948): often learns faster. Saved as plain LoRA."""
    eva: bool = knob(False, expert=True)
    """EVA
    Begin with the directions in which the rows differ most inside the model (arXiv 2410.07170). Costs one batch."""
    loftq: bool = knob(False, expert=True)
    """LoftQ
    Begin with what quantizing to 4 bits has lost of the weights (arXiv 2310.08659). Saved as plain LoRA."""
    experts: bool = knob(False, expert=True)
    """Experts
    In a mixture of experts: adapters on the weights of the experts, too. Learns more and takes more memory."""
    plus_ratio: float = knob(1.0, ge=1, le=1000, expert=True)
    """LoRA+
    How much faster the second matrix learns than the first (arXiv 2402.12354). 1 turns it off. Typical: 4 to 16."""
    start: list[str] = knob([], max_length=16, pick="tuned", expert=True)
    """Start from
    Runs or folders with LoRA adapters of this model. They are put into the weights one after the other, and into what
    is saved in the end: of a run that began with another one, name the later one alone."""
    go_on: bool = knob(False, expert=True)
    """Train on
    The last of those to start from is trained on as it is, instead of a new adapter above it. Its rank and alpha count,
    and its targets, layers, whole modules, dropout, rsLoRA and DoRA: leave these as they are here at first."""
    _targets_end = field_validator("targets")(ending)

    @model_validator(mode="after")
    def _starts_fit(self) -> Lora:
        if self.go_on and not self.start:
            raise crossed("start.none", "tuner.lora.start")
        brought = {"dropout", "targets", "layers", "extra", "rslora", "dora"}
        if self.go_on and (changed := self.model_dump(include=brought, exclude_defaults=True)):
            raise crossed("start.as_it_is", f"tuner.lora.{next(iter(changed))}")
        begins = [name for name in ("loftq", "eva", "pissa") if getattr(self, name)]
        if len(begins) + self.go_on > 1:
            raise crossed("lora.beginnings", f"tuner.lora.{begins[0]}")
        if self._under() and self.dora:
            raise crossed("start.dora", "tuner.lora.dora")
        if self._under() and self.experts:
            raise crossed("start.experts", "tuner.lora.experts")
        return self

    @model_validator(mode="after")
    def _experts_alone(self) -> Lora:
        if self.experts and (self.dropout or self.dora or self.pissa or self.eva):
            raise crossed("lora.experts", "tuner.lora.experts")
        return self

    @model_validator(mode="after")
    def _layers_are_numbers(self) -> Lora:
        if self.layers and not numbers(self.layers):
            raise crossed("lora.layers", "tuner.lora.layers", given=self.layers[:80])
        return self

    def pace(self, name: str) -> float:
        return self.plus_ratio if ".lora_B." in name else 1.0

    def needs_whole(self) -> tuple[LiteralString, str] | None:
        if self._under():
            return "quantizer.start", "tuner.lora.start"
        if self.experts:
            return "lora.experts_packed", "tuner.lora.experts"
        return ("quantizer.pissa", "tuner.lora.pissa") if self.pissa else None

    def against(self, quantizer: str) -> tuple[LiteralString, str] | None:
        if self.loftq and quantizer != "bnb_4bit":
            return "quantizer.loftq", "tuner.lora.loftq"
        if quantizer == "bnb_8bit" and self.dora:  # what the package unpacks weights with is gone after an answer
            return "quantizer.dora", "tuner.lora.dora"
        return super().against(quantizer)

    def check_packed(self, packed: Collection[str], *, eight: bool) -> None:
        if eight and self.dora:
            raise InputError("quantizer.dora", "tuner.lora.dora")
        if whole := next((name for name in self.extra if any(named(layer, [name]) for layer in packed)), ""):
            raise InputError("lora.packed_whole", "tuner.lora.extra", module=whole)

    @property
    def masks(self) -> bool:
        return self.dropout > 0

    def beside(self, linear: Linear) -> tuple[int, int]:
        if linear.of_expert:  # peft adds the products to the weights of all experts, and computes with the sum
            return self.rank, linear.rows * linear.columns * linear.count
        # DoRA multiplies what base and adapter give apart
        return (self.rank + 2 * linear.rows, 0) if self.dora else (self.rank, 0)

    def grown(self, shapes: Shapes) -> Shapes:
        return added.untied(shapes, self.extra)

    def beneath(self, shapes: Shapes, tokens: int = 0) -> int:
        return added.beneath(shapes, self.extra, tokens)

    def learns(self, shapes: Shapes, tokens: int = 0) -> dict[str, tuple[int, ...]]:
        linears = self._linears(shapes)
        learning = added.copied(shapes, self.extra, tokens) | added.rows(shapes, self.extra, tokens)
        learning |= added.beside_linears(linears, self.rank, lengths=self.dora)
        return learning | (added.beside_experts(shapes, self.rank) if self.experts else {})

    def check(self, shapes: Shapes) -> None:
        if self.go_on:
            return  # an adapter that is there says what it needs
        check_names(shapes, self.extra, "tuner.lora.extra", tied=True)
        check_targets(shapes, self.targets, "tuner.lora.targets", lora=True, whole=self.extra)
        check_layers(shapes, self.targets, self.layers)
        if self.experts:
            added.check_experts(shapes)
        sides = [min(one.rows, one.columns) for one in self._linears(shapes)] if self.pissa else []
        if self.rank > (limit := min(sides, default=self.rank)):
            raise InputError("lora.pissa_rank", "tuner.lora.rank", rank=self.rank, limit=limit)

    def check_made(self, made: PreTrainedModel) -> None:
        from core.models.linear import for_lora

        if not self.go_on:
            for_lora(made, self.targets, self.layers, self.extra)

    def attach(
        self, model: PreTrainedModel, folder: Path, tokens: Sequence[int] = (), rows: Rows = ()
    ) -> PreTrainedModel:
        from peft import LoraConfig, get_peft_model

        from core.models.copies import bind, share_all
        from core.models.linear import as_ends, for_lora
        from core.models.moe import stacked
        from core.models.vocabulary import learning

        if quantized(model) and (against := self.needs_whole()):
            raise InputError(*against)
        if self.start:
            from core.models.parts import continued, merged

            model = merged(model, self._under(), folder) if self._under() else model
            if self.go_on:
                return continued(model, self.start[-1], folder, above=bool(self._under()))
        indices, whole = learning(model, tokens, self.extra)
        targets, extra = for_lora(model, self.targets, self.layers, self.extra)
        self._check_apart(model, targets, indices)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft computes with it and takes any number
            lora_dropout=self.dropout,
            target_modules=targets,
            target_parameters=stacked(model) if self.experts else None,
            modules_to_save=[*as_ends(model, self.extra, extra), *whole] or None,
            trainable_token_indices=indices or None,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        tuned: Any = bind(share_all(get_peft_model(model, config)))  # casts the adapter to fp32
        if tokens:  # peft would write both tables beside them, whole
            tuned.save_pretrained = partial(tuned.save_pretrained, save_embedding_layers=False)
        self._begin(tuned, folder, rows)
        return tuned

    def _begin(self, tuned: Any, folder: Path, rows: Rows) -> None:
        """Set the adapter to where it shall begin, where that is not at nothing."""
        import torch

        from core.models import damage, dora, eva, loftq, pissa

        dora.check(tuned, ADAPTER)
        try:
            if self.pissa:
                pissa.begin(tuned, folder / "beginning", ADAPTER)
            if self.loftq:
                loftq.begin(tuned, folder / "beginning", ADAPTER)
            if self.eva:
                eva.begin(tuned, rows, ADAPTER)
        except torch.linalg.LinAlgError:  # no parts can be found of what is no number
            damage.find(tuned)
            raise

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        with aside(folder / "adapter") as place:
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
            if self.pissa:
                from core.models import pissa

                pissa.as_plain(place, folder / "beginning")
            if self.loftq or (self.go_on and (folder / "beginning").is_dir()):
                from core.models import loftq

                loftq.as_plain(place, folder / "beginning", model)
            if self._under():
                from core.models.parts import join

                join(place, folder)
        return folder / "adapter"

    def keeps_base(self) -> bool:
        return not (self.pissa or self.loftq or self.start)

    def against_stream(self) -> tuple[LiteralString, str] | None:
        return ("lora.eva_stream", "tuner.lora.eva") if self.eva else None

    def against_tokens(self, *, decay: bool) -> tuple[LiteralString, str] | None:
        return ("start.tokens", "tuner.lora.go_on") if self.go_on else None

    def starts(self) -> list[str]:
        return self.start

    def as_begun(self, workspace: Path) -> Lora:
        if not self.go_on:
            return self
        try:
            folder = tuned(self.start[-1], workspace)
            rank = inspect_adapter(folder).rank
        except InputError:  # told where it is looked at whether it can be used
            return self
        config = read_json(folder / CONFIG, "", "adapter.no_config")
        targets = config.get("target_modules") or []
        if isinstance(targets, list):  # names and ends of names
            targets = rf"(.*\.)?({'|'.join(map(re.escape, targets))})"
        found = {"rank": rank, "targets": [targets], "dora": bool(config.get("use_dora")), "layers": ""}
        found |= {"extra": config.get("modules_to_save") or [], "experts": bool(config.get("target_parameters"))}
        return self.model_copy(update=found)

    def _linears(self, shapes: Shapes) -> list[Linear]:
        """Return the layers that get an adapter."""
        linears = targeted(shapes, self.targets, within(self.layers, len(shapes.blocks)), self.extra)
        linears += [] if self.layers else ends(shapes, self.targets, table=True)
        linears = [one for one in linears if not held(one.name, self.extra, shapes.trunk)]
        return [one for one in linears if not taken_for_experts(shapes.type, one.name)]

    def _under(self) -> list[str]:
        """Return what is put into the weights, so that something new is trained above it."""
        return self.start[:-1] if self.go_on else self.start

    def _check_apart(self, model: PreTrainedModel, targets: list[str], indices: dict[str, list[int]]) -> None:
        """Raise InputError for a target at a table that learns in another way, or that has no singular parts taken."""
        from core.models.vocabulary import embedding_name

        taken = {*indices, *([embedding_name(model)] if self.pissa or self.loftq else [])}
        if table := next((name for name in taken for target in targets if f".{name}".endswith(f".{target}")), ""):
            raise InputError("lora.table", "tuner.lora.targets", module=table)
