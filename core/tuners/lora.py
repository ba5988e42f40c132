"""LoRA and its kin (Hu et al., arXiv 2106.09685): small added matrices learn, the base stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, LiteralString

from core.errors import InputError
from core.files import aside
from core.schema import knob
from core.tuners import Tuner, quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "default"
WEIGHTS = "adapter_model.safetensors"


class Lora(Tuner):
    """LoRA
    Small matrices beside the frozen weights learn. Light, quick and easy to swap: right for most cases."""

    kind: Literal["lora"] = "lora"
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
    Names of the modules that get an adapter, for example q_proj and v_proj, or regular expressions of whole names.
    all-linear means every linear layer of the text part but the head and what chooses experts."""
    extra: list[str] = knob([], max_length=64, expert=True)
    """Modules that learn whole
    Names such as embed_tokens or lm_head, which are trained and saved beside the adapter."""
    rslora: bool = knob(False, expert=True)
    """rsLoRA
    Scale by alpha / √rank instead (arXiv 2312.03732). Turn it on for ranks above 64."""
    dora: bool = knob(False, expert=True)
    """DoRA
    Learn length and direction of the weights apart (arXiv 2402.09353): often a little better, clearly slower."""
    pissa: bool = knob(False, expert=True)
    """PiSSA
    Begin with the principal parts of the weights (arXiv 2404.02948): often learns faster. Saved as plain LoRA."""

    def needs_whole(self) -> tuple[LiteralString, str] | None:
        return ("quantizer.pissa", "tuner.lora.pissa") if self.pissa else None

    def attach(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        from peft import LoraConfig, get_peft_model

        if quantized(model) and (against := self.needs_whole()):
            raise InputError(*against)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft computes with it and takes any number
            lora_dropout=self.dropout,
            target_modules=self._targets(model),
            modules_to_save=self.extra or None,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        tuned: Any = get_peft_model(model, config)  # casts the adapter to fp32
        if self.pissa:
            self._begin_with_principal_parts(tuned, folder / "beginning")
        return tuned

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
        with aside(folder / "adapter") as place:
            model.save_pretrained(place)
            if self.pissa:
                self._as_plain_lora(place, folder / "beginning")
        return folder / "adapter"

    def _targets(self, model: PreTrainedModel) -> list[str]:
        """Return the names of the modules that get an adapter; raise InputError for a target that fits none."""
        from core.models.linear import linear, short

        modules = [name for name, module in model.named_modules() if not any(module.children())]
        _check_known(self.extra, modules, "tuner.lora.extra")
        found: dict[str, None] = {}
        for target in self.targets:
            fitting = linear(model) if target == "all-linear" else _fitting(target, modules)
            if not fitting:
                raise _no_module(target, modules, "tuner.lora.targets")
            found |= dict.fromkeys(fitting)
        return short(model, list(found))

    def _begin_with_principal_parts(self, model: Any, beginning: Path) -> None:
        """Move the largest singular parts of each weight into its adapter: W = (W - s·B·A) + s·B·A.

        They are kept in `beginning`, for save() and for a resumed run, which takes the same parts out of the base.
        """
        from peft import set_peft_model_state_dict
        from peft.tuners.lora import LoraLayer
        from safetensors.torch import load_file

        layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
        if beginning.is_dir():
            set_peft_model_state_dict(model, load_file(beginning / WEIGHTS), ADAPTER)
        else:
            for layer in layers:
                _set_principal(layer)
            with aside(beginning) as place:
                model.save_pretrained(place)
        for layer in layers:
            weight = layer.get_base_layer().weight
            weight.data = (weight.data.float() - layer.get_delta_weight(ADAPTER)).to(weight.dtype)

    def _as_plain_lora(self, adapter: Path, beginning: Path) -> None:
        """Rewrite an adapter to fit the whole base: s·B·A - s·B0·A0 is one product of twice the rank.

        peft has a conversion of its own, which loses the magnitudes of DoRA.
        """
        import torch
        from peft import LoraConfig
        from safetensors.torch import load_file, save_file

        now, then = load_file(adapter / WEIGHTS), load_file(beginning / WEIGHTS)
        for name in now:
            if "lora_A" in name:
                now[name] = torch.cat([now[name], then[name]], dim=0)
            elif "lora_B" in name:
                now[name] = torch.cat([now[name], -then[name]], dim=1)
        save_file(now, adapter / WEIGHTS, metadata={"format": "pt"})
        config: Any = LoraConfig.from_pretrained(str(adapter))
        config.r, config.lora_alpha = 2 * self.rank, self.alpha * (2**0.5 if self.rslora else 2)  # s stays the same
        config.save_pretrained(str(adapter))


def _fitting(target: str, modules: list[str]) -> list[str]:
    """Return the modules that a name, the end of one, or a regular expression of a whole name means."""
    named = [name for name in modules if name == target or name.endswith(f".{target}")]
    try:
        return named or [name for name in modules if re.fullmatch(target, name)]
    except re.error as error:
        raise InputError("tuner.pattern", "tuner.lora.targets", given=target[:80], what=str(error)) from None


def _check_known(names: list[str], modules: list[str], place: str) -> None:
    for name in names:
        if not any(f".{name}." in f".{module}." for module in modules):
            raise _no_module(name, modules, place)


def _no_module(name: str, modules: list[str], place: str) -> InputError:
    known = sorted({module.rpartition(".")[2] for module in modules})
    return InputError("tuner.no_module", place, module=name, known=", ".join(known[:20]))


def _set_principal(layer: Any) -> None:
    """Set A and B of a layer to the roots of its largest singular parts, so that s·B·A is their sum.

    Raises InputError when the weight has fewer of them than the rank asks for.
    """
    import torch

    rank = layer.r[ADAPTER]
    weight_O_I = layer.get_base_layer().weight.data
    if rank > min(weight_O_I.shape):
        raise InputError("lora.pissa_rank", "tuner.lora.rank", rank=rank, limit=min(weight_O_I.shape))
    U_O_R, S_R, Vh_R_I = torch.linalg.svd(weight_O_I.float(), full_matrices=False)
    root_R = (S_R[:rank] / layer.scaling[ADAPTER]).sqrt()
    # copied into place: fused AdamW goes wrong where a weight and its loaded state lie in memory in different ways
    layer.lora_A[ADAPTER].weight.data.copy_(root_R[:, None] * Vh_R_I[:rank])
    layer.lora_B[ADAPTER].weight.data.copy_(U_O_R[:, :rank] * root_R)
