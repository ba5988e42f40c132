"""Models that bring code of their own: it runs only with consent to its very bytes and with the flag."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from core import config, runs
from core.errors import InputError
from core.models import consent
from core.models.inspect import foreign_code, inspect, inspect_adapter
from core.models.lineup import Lineup
from core.models.loading import load
from core.models.senses import Senses
from core.sections import Hardware, Model
from tests.conftest import ROOT, new_run
from tests.core.foreign_model import make_foreign
from tests.core.helpers import of_type, train, weights
from tests.core.models_fixtures import context
from tests.core.seeing import make_llava, make_pictures

CPU = Hardware(device="cpu")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user who has agreed to nothing yet, and a process without the flag."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(consent.FLAG, raising=False)
    yield tmp_path / "home"
    consent.allow(False)


@pytest.fixture
def mark(tmp_path):
    """The file that the model's code touches when it runs."""
    return tmp_path / "RAN"


@pytest.fixture
def model(tmp_path, mark):
    return make_foreign(tmp_path / "work" / "m", mark)


def agree(folder):
    consent.give(foreign_code(folder))


def refused(folder, code, mark):
    """See that a model is refused, by looking and by loading, and that nothing of it ran."""
    for attempt in (lambda: inspect(folder), lambda: load(Model(path=folder.name), folder.parent, CPU)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert (caught.value.code, caught.value.place) == (code, "model.path")
        assert not mark.exists()
    return str(caught.value)


def test_consent_and_flag_are_both_needed(model, mark):
    told = refused(model, "model.remote_code", mark)
    assert f"tuneboard trust {model}" in told and "modeling_tiny.py" in told
    consent.allow(True)
    refused(model, "model.remote_code", mark)
    consent.allow(False)
    agree(model)
    assert "--remote-code" in refused(model, "code.flag", mark)
    consent.allow(True)
    assert inspect(model).model_type == "tiny_foreign" and not mark.exists()  # looking runs nothing
    load(Model(path="m"), model.parent, CPU)
    assert mark.exists()


PLAIN = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import _compute_local_source_files_hash
folder, cache, mark = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
own = folder / "modeling_tiny.py"
poisoned = cache / "transformers_modules" / folder.name / _compute_local_source_files_hash(folder, own) / own.name
poisoned.parent.mkdir(parents=True)
content = own.read_text().replace("# room for poison" + " " * 200, "Path('POISON').touch()".ljust(217))
poisoned.write_text(content.replace("POISON", str(mark)).ljust(own.stat().st_size)[: own.stat().st_size])
import os
os.utime(poisoned, ns=(own.stat().st_atime_ns, own.stat().st_mtime_ns))
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
torch.save(model(input_ids=torch.arange(12)[None]).logits, sys.argv[4])
"""


def test_what_is_loaded_is_what_transformers_loads_and_no_poisoned_cache(model, mark, tmp_path):
    """transformers itself, told to trust, runs what somebody laid into its cache with the same size and time."""
    own, poison = model / "modeling_tiny.py", tmp_path / "POISON"
    own.write_text(own.read_text() + "\n# room for poison" + " " * 200 + "\n")
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PLAIN, str(model), str(tmp_path / "cache"), str(poison), str(tmp_path / "wanted")]
    subprocess.run(command, env=env, cwd=tmp_path, check=True, timeout=120)
    assert poison.exists()
    poison.unlink()
    agree(model)
    script = (
        "import sys, torch; from pathlib import Path; from core.models.loading import load_model; "
        "from core.sections import Hardware, Model; "
        "m = load_model(Model(path=sys.argv[1], precision='fp32'), Path(), Hardware(device='cpu')); "
        "print(torch.equal(m(input_ids=torch.arange(12)[None]).logits, torch.load(sys.argv[2], weights_only=True)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(model), str(tmp_path / "wanted")], cwd=ROOT,
                          env=env | {consent.FLAG: "1"}, capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr
    assert mark.exists() and not poison.exists()


CHANGES = {
    "a byte of the model": (lambda f: _append(f / "modeling_tiny.py"), "modeling_tiny.py"),
    "a byte of the config": (lambda f: _append(f / "configuration_tiny.py"), "configuration_tiny.py"),
    "one more file": (lambda f: (f / "torch_helper.py").write_text("1\n"), "torch_helper.py"),
    "one file less": (lambda f: (f / "more.py").unlink(), "more.py"),
    "auto_map of config.json": (lambda f: _map(f, "config.json", AutoModel="modeling_tiny.TinyForCausalLM"),
                                "auto_map"),
    "auto_map of the tokenizer": (lambda f: _map(f, "tokenizer_config.json", AutoTokenizer=["modeling_tiny.T", None]),
                                  "auto_map"),
    "auto_map of a processor": (lambda f: ((f / "processor_config.json").write_text("{}"),
                                           _map(f, "processor_config.json", AutoProcessor="modeling_tiny.P")),
                                "auto_map"),
}  # fmt: skip


def _append(path):
    path.write_bytes(path.read_bytes() + b"\n")


def _map(folder, name, **classes):
    told = json.loads((folder / name).read_text())
    told["auto_map"] = told.get("auto_map", {}) | classes
    (folder / name).write_text(json.dumps(told))


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_byte_makes_consent_void(model, mark, name):
    (model / "more.py").write_text("")
    agree(model)
    consent.allow(True)
    inspect(model)
    change, told = CHANGES[name]
    change(model)
    assert f"{told} changed" in refused(model, "code.changed", mark)
    agree(model)
    inspect(model)


def test_weights_and_settings_are_no_code(model):
    agree(model)
    consent.allow(True)
    told = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(told | {"pad_token_id": 3}))
    assert inspect(shutil.copytree(model, model.parent / "copy")).parameters == inspect(model).parameters


def test_code_runs_from_a_copy_that_nobody_else_can_change(model):
    agree(model)
    consent.allow(True)
    loaded, _ = load(Model(path="m"), model.parent, CPU)
    place = Path(sys.modules[type(loaded).__module__].__file__)
    assert not place.is_relative_to(model) and stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert {path.name for path in place.parent.glob("*.py")} == {"configuration_tiny.py", "modeling_tiny.py"}
    assert place.read_bytes() == (model / "modeling_tiny.py").read_bytes()


def test_what_can_t_be_imported_is_no_code_of_it(model):
    """A name with control characters in it would command the terminal of whoever looks."""
    (model / "a\x1b[2Jb.py").write_text("")
    (model / "convert-me.py").write_text("")
    (model / "sub").mkdir()
    (model / "sub" / "more.py").write_text("")
    assert set(foreign_code(model).files) == {"configuration_tiny.py", "modeling_tiny.py"}


@pytest.mark.parametrize("named", [None, [], {"a": 1}, "../llama"])
def test_a_type_that_is_none_is_refused(model, mark, named):
    told = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(told | {"model_type": named}))
    agree(model)
    consent.allow(True)
    with pytest.raises(InputError) as caught:
        load(Model(path="m"), model.parent, CPU)
    assert caught.value.code == ("code.fails" if isinstance(named, str) else "model.no_type")


def _link(folder, target):
    (folder / "modeling_tiny.py").rename(folder / "real.txt")
    (folder / "modeling_tiny.py").symlink_to(target)


def _named(reference):
    return lambda f: _map(f, "config.json", AutoModelForCausalLM=reference)


def _importing(line):
    return lambda f: (f / "modeling_tiny.py").write_text(f"import torch\n{line}\n")


ELSEWHERE = {
    "another repository": (_named("other/repo--modeling_tiny.TinyForCausalLM"), "code.elsewhere"),
    "the folder above": (_named("../evil.C"), "code.elsewhere"),
    "a folder inside": (_named("sub/evil.C"), "code.elsewhere"),
    "an absolute path": (_named("/etc/evil.C"), "code.elsewhere"),
    "a package": (_named("os.path.join"), "code.elsewhere"),
    "no text": (_named(5), "code.elsewhere"),
    "nested": (_named([["modeling_tiny.C"]]), "code.elsewhere"),
    "a map that is a number": (lambda f: (f / "config.json").write_text(
        json.dumps(json.loads((f / "config.json").read_text()) | {"auto_map": 5})), "code.elsewhere"),
    "a file that is not there": (_named("modeling_gone.C"), "code.missing"),
    "a link out of the folder": (lambda f: _link(f, "/etc/hostname"), "code.link"),
    "a link inside the folder": (lambda f: _link(f, "real.txt"), "code.link"),
    "a folder of that name": (lambda f: (f / "helper.py").mkdir(), "code.link"),
    "an import from above": (_importing("from ..work import secret"), "code.outside"),
    "an import from above, hidden": (_importing("from .\\\n. import secret"), "code.outside"),
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_code_from_elsewhere_is_never_run(model, mark, name):
    agree(model)
    consent.allow(True)
    spoil, code = ELSEWHERE[name]
    spoil(model)
    refused(model, code, mark)
    with pytest.raises(InputError) as caught:
        agree(model)
    assert caught.value.code == code


BROKEN = {
    "of another version": "from transformers import NoSuchThing\n",
    "no Python": "def (\n",
    "without the class": "x = 1\n",
    "that divides by nothing": "raise RuntimeError('no')\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_code_that_fails_is_named(model, name):
    (model / "modeling_tiny.py").write_text(BROKEN[name])
    agree(model)
    consent.allow(True)
    with pytest.raises(InputError) as caught:
        load(Model(path="m"), model.parent, CPU)
    assert caught.value.code == "code.fails" and str(model) in str(caught.value)


def test_an_adapter_never_brings_code(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": "evil.C"}}))
    with pytest.raises(InputError) as caught:
        inspect_adapter(tmp_path)
    assert caught.value.code == "adapter.remote_code"


def test_consents_are_the_user_s_own(model, home):
    mask = os.umask(0)
    agree(model)
    os.umask(mask)
    file = home / "tuneboard" / "trusted-code.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    consent.allow(True)
    inspect(model)
    file.chmod(0o620)  # another could have written it
    with pytest.raises(InputError) as caught:
        inspect(model)
    assert caught.value.code == "code.store"
    file.chmod(0o600)
    for content in ("{", "[]", ""):  # what can't be read is no consent
        file.write_text(content)
        with pytest.raises(InputError) as caught:
            inspect(model)
        assert caught.value.code == "model.remote_code"
    shutil.rmtree(home)
    home.write_text("")
    with pytest.raises(InputError) as caught:
        agree(model)
    assert caught.value.code == "path.not_writable"


def test_consent_is_taken_back_by_folder_or_sum(model, mark):
    consent.allow(True)
    sha = foreign_code(model).sha
    agree(model)
    assert consent.take_back(model.parent, sha[:7]) == []
    assert consent.take_back(model.parent, sha[:8]) == [str(model)]
    refused(model, "model.remote_code", mark)
    agree(model)
    assert consent.take_back(model, "") == [str(model)]
    assert consent.given() == {}


@pytest.mark.parametrize("job", config.JOBS)
@pytest.mark.parametrize("key", ["remote_code", "trust_remote_code", "model.remote_code", "model.trust_remote_code",
                                 "hardware.remote_code"])  # fmt: skip
def test_no_setting_switches_it_on(job, key):
    with pytest.raises(InputError) as caught:
        config.resolve(config.nest({key: True}), job=job)
    assert caught.value.code.startswith("config.unknown_key")


def test_the_engine_is_told_by_the_flag_alone(monkeypatch):
    assert consent.FLAG not in runs.environment()
    consent.allow(True)
    assert runs.environment()[consent.FLAG] == "1"
    consent.allow(False)
    assert consent.FLAG not in runs.environment()


def test_the_engine_imports_nothing_from_the_workspace(tmp_path):
    for name in ("core", "psutil", "torch", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    done = subprocess.run([sys.executable, "-m", "core.supervisor"], cwd=tmp_path, env=runs.environment(),
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert "IndexError" in done.stderr and "imported" not in done.stderr  # it began, and missed its arguments


def foreign_run(folder, model, data, *settings):
    return new_run(folder, model, data, "data.train=[orders]", "training.max_steps=4", "training.eval_every=0",
                   "saving.every=2", *settings)  # fmt: skip


def test_what_is_trained_whole_keeps_its_code_and_the_consent(model, tiny_data, mark):
    """A run that stops and goes on ends with the weights of one that did not; its model is loaded like the base."""
    from core.errors import Stopped

    agree(model)
    consent.allow(True)
    rooms = [foreign_run(model.parent / "runs" / name, model, tiny_data, "tuner.kind=full") for name in ("a", "b")]
    train(rooms[0])
    assert [event["code"] for event in of_type(rooms[0], "warning")] == ["code.runs"]
    with pytest.raises(Stopped):
        train(rooms[1], stop_at=2)
    consent.allow(False)
    with pytest.raises(InputError) as caught:
        train(rooms[1])  # a resumed run needs the flag again
    assert caught.value.code == "code.flag"
    consent.allow(True)
    train(rooms[1])
    whole, parts = (weights(room / "model") for room in rooms)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert foreign_code(rooms[0] / "model").sha == foreign_code(model).sha
    loaded, _ = load(Model(path="runs/a/model"), model.parent, CPU)
    assert torch.equal(loaded.lm_head.weight, whole["lm_head.weight"])


def test_an_export_carries_its_code_and_says_so(model, tiny_data):
    from core.export.merge import export

    agree(model)
    consent.allow(True)
    train(foreign_run(model.parent / "runs" / "a", model, tiny_data))
    job = {"source": "a", "model": {"path": str(model), "precision": "fp32"}, "hardware": {"device": "cpu"}}
    with context(model.parent) as given:
        found = Path(export(config.resolve(job, job="export"), given)["folder"])
    assert foreign_code(found).sha == foreign_code(model).sha
    card = (found / "README.md").read_text()
    assert "modeling_tiny.py" in card and foreign_code(model).sha in card
    _append(found / "modeling_tiny.py")
    with pytest.raises(InputError):
        inspect(found)


TOKENIZATION = """
from transformers import PreTrainedTokenizerFast


class TinyTokenizer(PreTrainedTokenizerFast):
    def shout(self, text):
        return self(text.upper())
"""


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json", "a list"])
def test_a_tokenizer_in_code_is_loaded_and_lies_beside_an_adapter(model, tiny_data, place):
    (model / "tokenization_tiny.py").write_text(TOKENIZATION)
    own = [None, "tokenization_tiny.TinyTokenizer"]
    _map(model, "tokenizer_config.json" if place == "a list" else place, AutoTokenizer=own)
    told = json.loads((model / "tokenizer_config.json").read_text())
    told |= {"tokenizer_class": "TinyTokenizer"} | ({"auto_map": own} if place == "a list" else {})
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    agree(model)
    consent.allow(True)
    _, tokenizer = load(Model(path="m"), model.parent, CPU)
    assert type(tokenizer).__module__.endswith(".tokenization_tiny") and tokenizer.shout("a") == tokenizer("A")
    train(foreign_run(model.parent / "runs" / "a", model, tiny_data))
    lineup = Lineup(Model(path="m"), ["a"], model.parent, CPU)
    assert type(lineup.tokenizer("a")) is type(tokenizer)
    whole = foreign_run(model.parent / "runs" / "w", model, tiny_data, "tuner.kind=full")
    train(whole)
    assert foreign_code(whole / "model").sha == foreign_code(model).sha
    assert type(load(Model(path="runs/w/model"), model.parent, CPU)[1]) is type(tokenizer)


SEEING = """
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


class TinyEyes(CLIPImageProcessorPil):
    pass


class TinyLook(LlavaConfig):
    model_type = "tiny_look"


class TinyProcessor(LlavaProcessor):
    pass


class TinyLookForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = TinyLook
"""
SEEN = {"AutoConfig": "seeing.TinyLook", "AutoModelForImageTextToText": "seeing.TinyLookForConditionalGeneration"}


def test_a_model_that_sees_by_code_of_its_own_learns_from_images(tmp_path):
    model, room = make_llava(tmp_path / "m"), tmp_path / "room"
    # transformers has other names for the files of a LLaVA than its code has
    LlavaForConditionalGeneration.from_pretrained(model).save_pretrained(model, save_original_format=False)
    (model / "seeing.py").write_text(SEEING)
    config_ = json.loads((model / "config.json").read_text())
    config_ |= {"model_type": "tiny_look", "architectures": ["TinyLookForConditionalGeneration"], "auto_map": SEEN}
    (model / "config.json").write_text(json.dumps(config_))
    told = json.loads((model / "processor_config.json").read_text())
    told |= {"processor_class": "TinyProcessor"}
    told["image_processor"] |= {"image_processor_type": "TinyEyes"}
    (model / "processor_config.json").write_text(json.dumps(told))
    _map(model, "processor_config.json", AutoProcessor="seeing.TinyProcessor", AutoImageProcessor="seeing.TinyEyes")
    agree(model)
    consent.allow(True)
    settings = ["data.train=[colours]", "tuner.kind=full", "training.max_steps=2", "training.eval_every=0"]
    run = new_run(room / "runs" / "a", model, make_pictures(tmp_path / "data"), *settings)
    train(run)
    senses = Senses(run / "model")
    assert foreign_code(run / "model").sha == foreign_code(model).sha
    assert senses.kinds == ("images",) and type(senses.processor).__name__ == "TinyProcessor"
    assert type(senses.processor.image_processor).__name__ == "TinyEyes"
