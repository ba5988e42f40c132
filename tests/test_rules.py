"""The house rules that a program can hold: sizes, cold imports, codes with texts, three languages, fresh files."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.i18n import LANGUAGES, english, table
from core.messages import MESSAGES
from core.schema import variants

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for room in ("app", "core") for path in (ROOT / room).rglob("*.py"))
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate")
PLURALS = re.compile(r"\.(zero|one|two|few|many|other)$")
DYNAMIC_CODES = ("end.", "phase.", "config.")
"""Beginnings of codes that are put together where they are used."""


def trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]


def name(path):
    return path.relative_to(ROOT).as_posix()


def test_files_have_at_most_300_lines():
    assert {name(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300} == {}


def test_functions_have_at_most_40_lines():
    long = {}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (lines := node.end_lineno - body[0].lineno + 1) > 40:
                    long[f"{name(path)}:{node.name}"] = lines
    assert long == {}


def test_nothing_probes_or_swallows():
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception"):
                found.append(f"{where} broad except")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
                found.append(f"{where} hasattr")
    assert found == []


DANGER = re.compile(
    r"shell=True|os\.system\(|\beval\(|\bexec\(|pickle\.load|yaml\.load\((?!text, _Loader)|yaml\.unsafe|"
    r"trust_remote_code=True|weights_only=False|torch\.load\(|gr\.load\("
)


def test_nothing_runs_what_was_given():
    found = [
        f"{name(path)}:{number} {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if DANGER.search(line.replace(".model_eval(", "")) and not re.search(r"\.eval\(\)", line)
    ]
    assert found == []


IMPORTERS = {"import_module", "module_from_spec", "spec_from_file_location", "get_class_from_dynamic_module",
             "get_cached_module_file", "load_custom_generate", "run_path", "run_module", "__import__"}  # fmt: skip
IMPORTING = {"core/models/foreign.py", "core/models/packages.py", "core/schema.py", "app/board.py"}
"""The first imports code of models, by consent; the others packages that are installed, and our own."""


def test_code_of_models_runs_in_one_place():
    found, told = [], 0
    for path, tree in trees():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            function, where = ast.unparse(node.func), f"{name(path)}:{node.lineno}"
            trust = {ast.unparse(k.value) for k in node.keywords if k.arg == "trust_remote_code"}
            told += bool(trust)
            if trust - {"False"}:
                found.append(f"{where} trusts")
            if re.fullmatch(r"(Auto\w+|_auto\(.*\))\.from_pretrained", function) and not trust:
                found.append(f"{where} leaves open whether it trusts")
            if function.rpartition(".")[2] in IMPORTERS and name(path) not in IMPORTING:
                found.append(f"{where} imports")
    assert found == [] and told >= 5


@pytest.mark.parametrize(
    "module", ["core.config", "core.runs", "core.supervisor", "core.worker", "core.texts", "app.cli", "app.board"]
)
def test_cold_imports(module):
    script = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["core.events", "core.series", "core.supervisor"])
def test_light_imports(module):
    script = f"import sys, {module}; print([m for m in ('pydantic', 'yaml', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def raised_codes():
    """Yield (where, code, names of parameters) of every error and warning that our code raises or reports."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            function = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if not (isinstance(first, ast.Constant) and isinstance(first.value, str) and "." in first.value):
                continue
            if function in {"InputError", "OutOfMemory", "NotFinite", "DeviceError", "Stopped", "TuneboardError"}:
                yield f"{name(path)}:{node.lineno}", first.value, {k.arg for k in node.keywords if k.arg}
            elif function == "PydanticCustomError":
                yield f"{name(path)}:{node.lineno}", first.value, None


def test_every_raised_code_has_a_text_with_its_parameters():
    wrong = []
    for where, code, given in raised_codes():
        if code not in MESSAGES:
            wrong.append(f"{where} {code}: no text")
        elif given is not None and (missing := set(re.findall(r"{(\w+)}", MESSAGES[code])) - given):
            wrong.append(f"{where} {code}: {missing} not given")
    assert wrong == []


def test_every_text_has_a_use():
    source = "\n".join(path.read_text(encoding="utf-8") for path in FILES if path.parent != ROOT / "core" / "messages")
    unused = [c for c in MESSAGES if not c.startswith(DYNAMIC_CODES) and f'"{c}"' not in source]
    assert unused == []


def flat(node, prefix=""):
    if isinstance(node, dict):
        return {
            k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: node}


def test_english_is_fresh():
    stored = json.loads((ROOT / "locales" / "en.json").read_text(encoding="utf-8"))
    assert stored == english(), "run `make locales`"


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != "en"])
def test_languages_are_complete(language):
    ours, theirs = flat(table("en")), flat(table(language))
    keys = [{PLURALS.sub("", key) for key in texts} for texts in (ours, theirs)]
    assert keys[0] - keys[1] == set() and keys[1] - keys[0] == set()
    holes = re.compile(r"{(\w+)")
    assert {
        k for k in ours.keys() & theirs.keys() if set(holes.findall(ours[k])) != set(holes.findall(theirs[k]))
    } == set()
    assert [k for k, text in theirs.items() if not text.strip()] == []


def test_every_used_key_of_the_board_exists():
    ui = {PLURALS.sub("", key) for key in flat(table("en"))}
    pattern = re.compile(r'"(ui(?:\.\w+)+)"')
    used = {(name(p), key) for p in FILES for key in pattern.findall(p.read_text(encoding="utf-8"))}
    assert {(p, k) for p, k in used if k not in ui and not any(key.startswith(k + ".") for key in ui)} == set()


def test_readme_draws_the_tree_as_it_is():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for room in ("app", "core", "locales", "assets", "tests", "bench"):
        assert f"{room}/" in readme
    rooms = [path.name for path in (ROOT / "core").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [room for room in rooms if f"{room}/" not in readme] == []


def test_it_is_told_which_stages_learn_from_comparisons_and_praise():
    told = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
    paired = [kind for kind, stage in variants("core.stages").items() if stage.wanted[0] in ("ranking", "feedback")]
    assert [kind for kind in paired if f"`{kind}`" not in told] == [] and len(paired) == 6


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60
