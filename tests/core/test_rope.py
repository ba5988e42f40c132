"""Positions stretched over longer inputs: what it means, a run beyond the model's context, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core import config
from core.errors import InputError
from core.models.loading import load_model
from core.models.rope import FULL, OF_KIND, UNTURNED, context, stretch
from core.preflight import check_model
from core.sections import Hardware, Model
from tests.conftest import copy_of, write_rows
from tests.core.helpers import of_type, train

CPU = Hardware(device="cpu")


def test_linear_at_twice_the_positions_is_the_model_as_it_was(tiny_model: Path) -> None:
    """Angles are position / factor * frequency: at 2p with a factor of 2 they are those of p."""
    plain, stretched = (
        load_model(Model(path=str(tiny_model), **more), tiny_model, CPU, training=True)  # type: ignore[arg-type]
        for more in ({}, {"rope": "linear", "context": 1024})
    )
    ids, positions = torch.arange(5, 45)[None], torch.arange(40)[None]
    with torch.no_grad():
        before = plain(ids, position_ids=positions).logits
        after = stretched(ids, position_ids=2 * positions).logits
        other = stretched(ids, position_ids=positions).logits
    assert torch.allclose(before, after, atol=1e-5) and not torch.allclose(before, other, atol=1e-3)
    assert context(stretched.config) == 1024


@pytest.mark.parametrize("kind", OF_KIND)
def test_a_run_at_twice_the_context_learns_and_says_nothing(
    make_run: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    write_rows(tmp_path / "long.jsonl", [{"instruction": "red pen " * 250, "output": f"cup {i}"} for i in range(6)])
    data = (f"data.folder={tmp_path}", "data.train=[long.jsonl]", "data.cutoff=1024", "data.eval_share=0")
    folder = make_run(kind, *data, f"model.rope={kind}", "training.max_steps=3", "training.batch_size=2")
    train(folder)
    losses = [event["loss"] for event in of_type(folder, "step")]
    assert losses[-1] < losses[0]
    assert "data.beyond_context" not in [event["code"] for event in of_type(folder, "warning")]


def test_rows_beyond_the_context_are_told(make_run: Callable[..., Path], tmp_path: Path) -> None:
    write_rows(tmp_path / "long.jsonl", [{"instruction": "red pen " * 250, "output": "cup"}] * 2)
    data = (f"data.folder={tmp_path}", "data.train=[long.jsonl]", "data.cutoff=1024", "data.eval_share=0")
    folder = make_run("beyond", *data, "training.max_steps=1", "training.batch_size=2")
    train(folder)
    told = [event for event in of_type(folder, "warning") if event["code"] == "data.beyond_context"]
    assert [event["params"] for event in told] == [{"count": 2, "context": 512}]


def test_layers_that_look_back_only_so_far_stay_as_they_are() -> None:
    shape: Any = AutoConfig.for_model("gemma3_text", max_position_embeddings=512)
    before = dict(shape.rope_parameters["sliding_attention"])
    stretch(shape, "yarn", 2048)
    assert shape.rope_parameters["sliding_attention"] == before
    assert shape.rope_parameters["full_attention"]["factor"] == 4 and context(shape) == 2048


REFUSED = {
    "learned positions": ("gpt2", {}, "yarn", "rope.none"),
    "slopes instead": ("falcon", {"alibi": True}, "linear", "rope.none"),
    "no positions at all": ("zamba2", {}, "linear", "rope.none"),
    "stretched already": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
                          "yarn", "rope.twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_stretched_is_refused(name: str) -> None:
    model_type, more, kind, code = REFUSED[name]
    with pytest.raises(InputError) as caught:
        stretch(AutoConfig.for_model(model_type, **more), kind, 1 << 20)
    assert (caught.value.code, caught.value.place) == (code, "model.rope")


@pytest.mark.parametrize("model_type", UNTURNED)
def test_types_that_are_refused_by_name_have_nothing_to_stretch(model_type: str) -> None:
    told = AutoConfig.for_model(model_type).get_text_config().to_dict()
    assert "rope_theta" not in (told.get("rope_parameters") or {}) and FULL not in (told.get("rope_parameters") or {})


@pytest.mark.parametrize(("told", "code"), [
    ({}, ""), ({"model_type": "gpt2"}, "rope.none"), ({"model_type": "falcon"}, ""),
    ({"model_type": "falcon", "alibi": True}, "rope.none"), ({"model_type": "zamba2"}, "rope.none"),
    ({"model_type": "zamba2", "use_mem_rope": True}, ""),
    ({"model_type": "nemotron_h_omni", "text_config": {"model_type": "nemotron_h"}}, "rope.none"),
])  # fmt: skip
def test_it_is_told_by_the_files(tiny_model: Path, tmp_path: Path, told: dict[str, Any], code: str) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | told))
    for settings in ({"rope": "none"}, {"rope": "yarn", "context": 1024}):
        job = config.resolve({"kind": "serving", "model": {"path": str(folder), **settings}})
        found = ""
        try:
            check_model(job, tmp_path)
        except InputError as error:
            found = error.code
            assert error.place == "model.rope" and error.params == {"model": told.get("model_type")}
        assert found == (code if "context" in settings else "")


def test_positions_that_are_rotary_only_if_asked_for_are_stretched() -> None:
    shape: Any = AutoConfig.for_model("zamba2", use_mem_rope=True, max_position_embeddings=512)
    stretch(shape, "linear", 1024)
    assert context(shape) == 1024


def test_answers_need_to_know_how_far(tiny_model: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_model(Model(path=str(tiny_model), rope="yarn"), tiny_model, CPU)
    assert (caught.value.code, caught.value.place) == ("rope.no_context", "model.context")
    model = load_model(Model(path=str(tiny_model), rope="dynamic", context=1024), tiny_model, CPU)
    assert context(model.config) == 1024


def test_a_whole_model_keeps_its_stretch_when_it_is_saved(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(Model(path=str(tiny_model), rope="llama3", context=1024), tiny_model, CPU)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(5, 305)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    assert context(again.config) == 1024


@pytest.mark.parametrize("kind", OF_KIND)
def test_a_whole_model_that_was_stretched_is_read_as_it_is(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    settings = Model(path=str(tiny_model), rope=kind, context=1024)  # type: ignore[arg-type]
    model = load_model(settings, tmp_path, CPU, training=True)
    model.save_pretrained(tmp_path / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "whole" / name).write_bytes((tiny_model / name).read_bytes())
    again = load_model(settings.at(str(tmp_path / "whole")), tmp_path, CPU)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", OF_KIND)
def test_a_config_without_the_width_of_its_heads_can_be_stretched(kind: str) -> None:
    shape = AutoConfig.for_model("mixtral", hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
                                 intermediate_size=32, num_hidden_layers=1, vocab_size=50, num_local_experts=2,
                                 max_position_embeddings=64)  # fmt: skip
    assert shape.head_dim is None
    stretch(shape, kind, 128)
    logits = AutoModelForCausalLM.from_config(shape)(torch.arange(40)[None]).logits
    assert logits.shape == (1, 40, 50) and torch.isfinite(logits).all()
