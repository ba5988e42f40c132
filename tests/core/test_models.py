"""Loading, the line-up and answering, on real tiny models."""

import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from core.errors import DeviceError, InputError
from core.models.answering import TextPieces, encode, pad_left, render
from core.models.device import compute_dtype, pick_device
from core.models.inspect import inspect, inspect_adapter
from core.models.lineup import Lineup
from core.models.loading import load, load_model, load_tokenizer
from core.sections import Hardware, Model
from tests.core.models_fixtures import ASK, context, make_adapter, make_model, make_tokenizer, told

CPU = Hardware(device="cpu")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A workspace with a base, adapters of several kinds and a whole tuned model."""
    room = tmp_path_factory.mktemp("room")
    base = make_model(room / "base")
    make_adapter(room / "plain", base)
    make_adapter(room / "dora", base, use_dora=True, seed=2)
    make_adapter(room / "rslora", base, use_rslora=True, target_modules=["q_proj", "v_proj"], seed=3)
    make_adapter(room / "runs" / "my run.1" / "adapter", base, seed=4)
    make_adapter(room / "head", base, target_modules=["q_proj"], modules_to_save=["embed_tokens"], seed=5)
    make_model(room / "whole", seed=9)
    return room


def logits(model, text="hello world"):
    ids = torch.tensor(encode(make_tokenizer(), [text]))
    with torch.inference_mode():
        return model(ids).logits


def test_facts_are_those_of_the_loaded_model(room):
    facts = inspect(room / "base")
    model, tokenizer = load(Model(path="base"), room, CPU)
    assert (facts.parameters, facts.context, facts.vocabulary) == (model.num_parameters(), 256, len(tokenizer))
    assert (facts.model_type, facts.dtype, facts.bytes) == ("llama", "F32", 4 * facts.parameters)
    assert facts.chat_template and facts.architecture == "LlamaForCausalLM"
    adapter = inspect_adapter(room / "plain")
    assert (adapter.peft_type, adapter.rank) == ("LORA", 4)
    plain = PeftModel.from_pretrained(model, room / "plain")
    assert adapter.parameters == sum(p.numel() for name, p in plain.named_parameters() if "lora_" in name)


def test_inspection_is_cold_and_quick(room):
    code = (
        "import sys, core.models.inspect, core.serving.client\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'safetensors') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    began = time.perf_counter()
    inspect(room / "base")
    assert time.perf_counter() - began < 0.05


def test_weights_are_as_stored(room):
    ours, theirs = load_model(Model(path="base"), room, CPU), AutoModelForCausalLM.from_pretrained(room / "base")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not ours.training and ours.config._attn_implementation == "sdpa"


def test_sharded_and_half_precision_models_load(room, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(room / "base", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    make_tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    facts = inspect(tmp_path / "shards")
    assert (facts.dtype, facts.parameters) == ("BF16", model.num_parameters())
    spec = Model(path="shards", precision="bf16")
    assert load_model(spec, tmp_path, CPU).dtype == torch.bfloat16
    assert load_model(spec, tmp_path, CPU, training=True).dtype == torch.float32


def test_device(room):
    assert compute_dtype(Model(), torch.device("cpu")) == torch.float32
    assert compute_dtype(Model(precision="bf16"), torch.device("cpu")) == torch.bfloat16
    assert pick_device(CPU).type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError) as caught:
            pick_device(Hardware(device="cuda"))
        assert (caught.value.code, caught.value.place) == ("device.none", "hardware.device")
        with pytest.raises(InputError) as refused:
            load_model(Model(path="base", attention="flash_attention_2"), room, CPU)
        assert refused.value.code == "model.attention"


def test_base_model_without_template_gets_chatml_in_memory_only(tmp_path):
    folder = make_model(tmp_path / "bare", template=None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with context(tmp_path) as job:
        tokenizer = load_tokenizer(Model(path="bare"), tmp_path, job.events)
        assert [event["code"] for event in told(job, "warning")] == ["model.template_default"]
    answered = [*ASK, {"role": "assistant", "content": "Yes"}]
    row = tokenizer.apply_chat_template(answered, return_dict=True, return_assistant_tokens_mask=True)
    marked = [id_ for id_, mark in zip(row["input_ids"], row["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "Yes<|end|>"
    assert render(tokenizer, answered, ask=False).startswith(render(tokenizer, ASK))
    assert tokenizer.pad_token == "<|end|>"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_lineup_equals_plain_loads(room):
    names = ["plain", "dora", "rslora", "my run.1", "head", "whole"]
    lineup = Lineup(Model(path="base"), names, room, CPU)
    assert lineup.names == ("base", *names)
    found = {}
    for name in [*lineup.names, *reversed(lineup.names)]:
        with lineup.use(name) as model:
            found.setdefault(name, logits(model))
            assert torch.equal(found[name], logits(model))
    assert torch.equal(found["base"], logits(AutoModelForCausalLM.from_pretrained(room / "base")))
    assert torch.equal(found["whole"], logits(AutoModelForCausalLM.from_pretrained(room / "whole")))
    for name, folder in zip(names[:-1], ["plain", "dora", "rslora", "runs/my run.1/adapter", "head"], strict=True):
        alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(room / "base"), room / folder).eval()
        assert torch.equal(found[name], logits(alone)), name
        assert not torch.allclose(found[name], found["base"]), name


def test_pissa_saved_as_plain_lora_answers_as_it_was_trained(room, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(room / "base")
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trained = logits(model.eval())
    model.save_pretrained(tmp_path / "raw")
    model.peft_config["default"].init_lora_weights = "pissa"
    model.save_pretrained(tmp_path / "pissa", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    lineup = Lineup(Model(path=str(room / "base")), [str(tmp_path / "pissa")], room, CPU)
    with lineup.use(str(tmp_path / "pissa")) as tuned:
        assert torch.allclose(logits(tuned), trained, atol=1e-3)
    with lineup.use("base") as base:
        assert torch.equal(logits(base), logits(AutoModelForCausalLM.from_pretrained(room / "base")))


def test_text_pieces_join_to_the_text_and_never_split_a_character():
    tokenizer, pieces = make_tokenizer(), []
    text = "Ärger 你好 👍🏽 e\u0301nd"
    streamer = TextPieces(tokenizer, pieces.append)
    streamer.put(torch.tensor([[1, 2]]))
    for id_ in encode(tokenizer, [text])[0]:
        streamer.put(torch.tensor([id_]))
    streamer.put(torch.tensor([tokenizer.eos_token_id]))
    streamer.end()
    assert "".join(pieces) == text and len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)


def test_padding():
    batch = pad_left([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
