"""Tokens added to a model: rows that begin near the mean, learn, and go wherever the tuned model goes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

from core import config
from core.errors import InputError
from core.export.merge import export
from core.generation import Generation
from core.models import vocabulary
from core.models.adapters import load_adapter
from core.models.answering import draw, sampling
from core.models.lineup import Lineup
from core.models.loading import load, load_tokenizer
from core.sections import Hardware, Model
from core.tuners.lora import Lora
from tests.core import tiny
from tests.core.helpers import train, weights
from tests.core.models_fixtures import context, make_adapter, make_model

CPU = Hardware(device="cpu")
V = 323
"""Tokens of the tiny model."""
WORDS, CONTROLS = ["Turn this into", "\u00c4rger"], ["<|tool|>"]
ADDED = [f"model.add_tokens={json.dumps(WORDS)}", f"model.add_special_tokens={json.dumps(CONTROLS)}"]
IDS_B_T = torch.arange(60).view(2, 30)


def logits(model: Any, ids_B_T: torch.Tensor = IDS_B_T) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(ids_B_T).logits


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_begin_near_the_mean_and_old_ones_stay(tmp_path: Path, tied: bool) -> None:
    make_model(tmp_path / "base", tie_word_embeddings=tied)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / "base") for _ in range(2)]
    old, before = logits(models[0]), {n: p.detach().clone() for n, p in vocabulary.tables(models[0]).items()}
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        vocabulary.grow(model, 260, 263)
    model = models[0]
    assert vocabulary.embedding_rows(model) == model.config.vocab_size == model.lm_head.out_features == 320
    assert list(before) == (["model.embed_tokens.weight"] if tied else ["model.embed_tokens.weight", "lm_head.weight"])
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    for name, table in vocabulary.tables(model).items():
        assert torch.equal(table[:260], before[name])
        spread = (table[260:] - before[name].mean(0)) / before[name].std(0)
        assert 0.09 < spread.std().item() < 0.11 and len(table[260:].unique(dim=0)) == 60
        assert torch.equal(table, dict(models[1].named_parameters())[name])
    assert torch.equal(logits(model)[..., :260], old)


def test_the_bias_of_a_head_grows_with_it() -> None:
    shape = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 4}  # fmt: skip
    model = PhiForCausalLM(PhiConfig(**shape))
    model.lm_head.bias.data = torch.arange(100.0)
    vocabulary.grow(model, 100, 101)
    assert torch.equal(model.lm_head.bias, torch.cat([torch.arange(100.0), torch.full((28,), 49.5)]))


def test_rows_that_no_token_had_are_given_out_first(tmp_path: Path) -> None:
    make_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = model.get_input_embeddings().weight.detach().clone()
    vocabulary.grow(model, 250, 252)
    after = model.get_input_embeddings().weight
    assert after.shape == before.shape and torch.equal(after[:250], before[:250])
    assert torch.equal(after[252:], before[252:]) and (after[250:252] - before[:250].mean(0)).abs().max() < 0.5


@pytest.mark.parametrize(("model_type", "whole"), [
    ("llama", []), ("qwen3_moe", []), ("gemma3_text", []), ("gpt2", []), ("cohere", []), ("mamba", []), ("falcon", []),
    ("phi", ["lm_head"]), ("muse_glimmer", ["model.language_model.embed_tokens"]),
])  # fmt: skip
def test_families_learn_new_rows(model_type: str, whole: list[str], tmp_path: Path) -> None:
    model = tiny.tiny_model(model_type)
    vocabulary.grow(model, 256, 259)
    names = [name.removesuffix(".weight") for name in vocabulary.tables(model)]
    if model_type == "phi":
        model.lm_head.bias.data.normal_()
    batch = tiny.tiny_batch()
    batch["input_ids"][0, :3] = batch["labels"][0, :3] = torch.arange(256, 259)
    before = model.eval()(**batch).logits
    tuned: Any = Lora(rank=2).attach(model, tmp_path, [256, 257, 258])
    assert torch.allclose(tuned.eval()(**batch).logits, before, atol=1e-5)
    learning = {name: p for name, p in tuned.named_parameters() if p.requires_grad and "lora_" not in name}
    ends = {re.sub(r"\.(token_adapter|modules_to_save)\..*", "", name) for name in learning}
    assert ends == {f"base_model.model.{name}" for name in names}
    assert [name for name in names if any(f".{name}.modules" in learned for learned in learning)] == whole
    tuned.train()(**batch).loss.backward()
    for parameter in learning.values():
        rows = slice(256, 259) if len(parameter) > 3 else slice(3)
        assert parameter.grad is not None and parameter.grad[rows].any()
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    after = tuned.eval()(**batch).logits
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.allclose(tuned.merge_and_unload()(**batch).logits, after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model_type", ["deepseek_v4", "nemotron_h_omni", "mllama", "molmo2"])
def test_types_that_cannot_grow_are_refused(model_type: str) -> None:
    model = tiny.tiny_model(model_type)
    with pytest.raises(InputError) as caught:
        vocabulary.grow(model, 256, 257)
    assert (caught.value.code, caught.value.place) == ("vocabulary.fixed", "model.add_tokens")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Callable[..., Path]:
    """tuned(kind): the folder of a run that learned new tokens, trained once."""
    from tests.conftest import new_run

    workspace = tmp_path_factory.mktemp("workspace")

    def make(kind: str, *settings: str) -> Path:
        folder = workspace / "runs" / f"{kind}"
        if not folder.exists():
            kinds = ["tuner.kind=lora", "tuner.rank=4"] if kind.startswith("lora") else [f"tuner.kind={kind}"]
            train_(new_run(folder, tiny_model, tiny_data, *ADDED, *kinds, *settings))
        return folder

    def train_(folder: Path) -> None:
        train(folder)

    return make


KINDS = {"lora": (), "lora extra": ("tuner.extra=[embed_tokens,lm_head]",), "freeze": ("tuner.layers=1",), "full": ()}


@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_are_learned_saved_and_loaded_again(tuned: Callable[..., Path], tiny_model: Path, kind: str) -> None:
    run = tuned(kind, *KINDS[kind])
    workspace = run.parents[1]
    base, _ = load(Model(path=str(tiny_model), add_tokens=WORDS, add_special_tokens=CONTROLS), workspace, CPU)
    lineup = Lineup(Model(path=str(tiny_model)), [run.name], workspace, CPU)
    tokenizer = lineup.tokenizer(run.name)
    assert len(tokenizer) == V + 3 and len(lineup.tokenizer("base")) == V
    assert tokenizer.tokenize("Turn this into <|tool|>")[0] == WORDS[0] and tokenizer.chat_template
    ids = torch.tensor([[V, V + 1, V + 2, 5, 6, 7]])
    with lineup.use(run.name) as model:
        found = logits(model, ids)
    # the row of what was read moved, that of what was never read or written stayed where it began
    saved = weights(run / ("adapter" if kind.startswith("lora") else "model"))
    rows = next(table for name, table in saved.items() if "embed_tokens" in name)
    rows = rows if len(rows) == 3 else rows[V : V + 3]
    began = base.get_input_embeddings().weight[V : V + 3]
    assert not torch.allclose(rows[0], began[0], atol=1e-3)
    if kind == "lora":
        assert [len(table) for name, table in saved.items() if "lora_" not in name] == [3, 3]
    if kind == "freeze":
        table = saved["model.embed_tokens.weight"]
        assert torch.equal(table[:V], base.get_input_embeddings().weight[:V])
        assert torch.equal(saved["lm_head.weight"][:V], base.lm_head.weight[:V])
        assert not torch.equal(saved["lm_head.weight"][V : V + 3], base.lm_head.weight[V : V + 3])

    with context(workspace, f"export {kind}") as at:
        job = config.resolve({"model": {"path": str(tiny_model)}, "source": run.name}, job="export")
        metrics = export(job, at)  # type: ignore[arg-type]
    merged = AutoModelForCausalLM.from_pretrained(metrics["folder"])
    assert merged.config.vocab_size == 384 and metrics["difference"] <= 1e-4
    assert torch.allclose(logits(merged, ids), found, atol=1e-4)
    assert torch.allclose(merged.get_input_embeddings().weight[V : V + 3], rows, atol=1e-6)
    assert AutoTokenizer.from_pretrained(metrics["folder"]).convert_tokens_to_ids(CONTROLS) == [V + 2]


def test_one_base_carries_adapters_with_and_without_new_tokens(
    tuned: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    first = tuned("lora") / "adapter"
    workspace = first.parents[2]
    plain = make_adapter(tmp_path / "plain", tiny_model)
    other = tmp_path / "other"
    shutil.copytree(first, other)
    changed = {n: 2 * t if "token" in n else t for n, t in load_file(other / "adapter_model.safetensors").items()}
    save_file(changed, other / "adapter_model.safetensors", metadata={"format": "pt"})
    folders = [str(first), str(plain), str(other)]
    together = Lineup(Model(path=str(tiny_model)), folders, workspace, CPU)
    for folder in folders:
        alone = Lineup(Model(path=str(tiny_model)), [folder], workspace, CPU)
        with together.use(folder) as one, alone.use(folder) as two:
            assert torch.allclose(logits(one)[..., :V], logits(two)[..., :V], atol=1e-5), folder
    whole = AutoModelForCausalLM.from_pretrained(tiny_model)
    with together.use("base") as base:
        assert torch.equal(logits(base)[..., :V], logits(whole))


def test_tied_tables_stay_tied(tmp_path: Path) -> None:
    make_model(tmp_path / "base", tie_word_embeddings=True)
    settings = Model(path="base", add_tokens=WORDS)
    model, tokenizer = load(settings, tmp_path, CPU)
    tuned: Any = Lora(rank=2).attach(model, tmp_path, [260, 261])
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    wanted = logits(tuned)
    place = Lora(rank=2).save(tuned, tokenizer, tmp_path / "runs" / "tied")
    assert [len(table) for name, table in weights(place).items() if "lora_" not in name] == [2]
    with context(tmp_path, "export") as at:
        job = config.resolve({"model": {"path": "base"}, "source": "tied"}, job="export")
        merged = AutoModelForCausalLM.from_pretrained(export(job, at)["folder"])  # type: ignore[arg-type]
    assert merged.config.tie_word_embeddings and merged.lm_head.weight is merged.get_input_embeddings().weight
    assert torch.allclose(logits(merged), wanted, atol=1e-3)


@pytest.mark.parametrize(("settings", "code", "place"), [
    (["model.add_tokens=[' ']"], "vocabulary.token", "model.add_tokens"),
    (["model.add_tokens=[a b]", "model.add_special_tokens=[a b]"], "vocabulary.token", "model.add_special_tokens"),
    (["model.add_tokens=[new]", "tuner.kind=oft"], "vocabulary.tuner", "tuner"),
    (["model.add_tokens=[new]", "tuner.kind=freeze", "optimizer.weight_decay=0.1"], "vocabulary.decay", "optimizer"),
])  # fmt: skip
def test_refused_before_the_start(settings: list[str], code: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        config.resolve(config.override(settings))
    assert (caught.value.code, caught.value.place) == (code, place)


def test_refused_once_it_is_seen(tmp_path: Path, tiny_model: Path, tuned: Callable[..., Path]) -> None:
    with pytest.raises(InputError) as caught:
        load_tokenizer(Model(path=str(tiny_model), add_special_tokens=["<|end|>"]), tmp_path)
    assert (caught.value.code, caught.value.place) == ("vocabulary.known", "model.add_special_tokens")

    shutil.copytree(tiny_model, tmp_path / "larger")  # the tokenizer knows more than the model, new tokens or not
    larger = AutoTokenizer.from_pretrained(tiny_model)
    larger.add_tokens(["one too many"])
    larger.save_pretrained(tmp_path / "larger")
    for tokens in ([], ["new"]):
        with pytest.raises(InputError) as caught:
            load(Model(path="larger", add_tokens=tokens), tmp_path, CPU)
        assert (caught.value.code, caught.value.place) == ("model.vocabulary", "model.path")

    model, _ = load(Model(path=str(tiny_model)), tmp_path, CPU)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError) as caught:
        vocabulary.grow(model, V, V + 1)
    assert (caught.value.code, caught.value.place) == ("vocabulary.fixed", "model.add_tokens")

    shutil.copytree(tuned("lora") / "adapter", tmp_path / "adapter")
    cases: tuple[tuple[Any, str], ...] = (
        ([10_000], "tokens"), ([-1], "bad_config"), ({"model.embed_tokens": ["x"]}, "bad_config"),
    )  # fmt: skip
    for indices, code in cases:
        settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        settings["trainable_token_indices"] = indices
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(InputError) as caught:
            load_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "adapter", "one")
        assert (caught.value.code, caught.value.place) == (f"adapter.{code}", "tuned")


def test_a_base_in_four_bits_learns_new_rows(tmp_path: Path, tiny_model: Path) -> None:
    settings = Model.model_validate({"path": str(tiny_model), "quantizer": {"kind": "bnb_4bit"}, "add_tokens": WORDS})
    model, tokenizer = load(settings, tmp_path, CPU, training=True)
    ids = [V, V + 1]
    tuned: Any = Lora(rank=2).attach(model, tmp_path, ids)
    learning = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.02)
    batch = torch.tensor([[V, 5, V + 1, 7, 9, 11]])
    for _ in range(3):
        tuned.train()(batch, labels=batch).loss.backward()
        optimizer.step()
    trained = logits(tuned, batch)
    Lora(rank=2).save(tuned, tokenizer, tmp_path / "runs" / "four")
    lineup = Lineup(settings.at(str(tiny_model)), ["four"], tmp_path, CPU)
    with lineup.use("four") as again:
        assert torch.allclose(logits(again, batch), trained, atol=1e-5)


def test_pissa_and_new_tokens_begin_alike_each_time(tmp_path: Path, tiny_model: Path) -> None:
    begun = []
    for _ in range(2):
        model, _ = load(Model(path=str(tiny_model), add_tokens=WORDS), tmp_path, CPU)
        plain = logits(model)
        begun.append(logits(Lora(rank=2, pissa=True).attach(model, tmp_path, [V, V + 1])))
        assert torch.allclose(begun[-1], plain, atol=1e-5)
    assert torch.equal(*begun)


def test_rows_that_no_token_has_are_never_drawn(tmp_path: Path) -> None:
    make_model(tmp_path / "base", tie_word_embeddings=False)
    model, tokenizer = load(Model(path="base"), tmp_path, CPU)
    vocabulary.grow(model, 260, 261)
    model.lm_head.weight.data[260:] = 9 * model.lm_head.weight.data[:60]
    settings = sampling(Generation(max_new_tokens=20), model, tokenizer)
    drawn = draw(model, [[1, 2, 3], [7, 8, 9]], settings)
    assert drawn.max() < 260 and drawn.shape == (2, 20)
    settings.suppress_tokens = None
    assert draw(model, [[1, 2, 3], [7, 8, 9]], settings).max() >= 260
