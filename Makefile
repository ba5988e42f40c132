# Everything a newcomer or a CI machine types. Needs python3 (>= 3.11, with venv), git and make; the rest is installed here.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# Without what it depends on: it would replace torch by a newer one.
GPTQ := gptqmodel==7.7.0 optimum==2.3.0 device-smi==0.5.7 pypcre==0.6.4 tokenicer==0.0.14 logbar==0.4.15 defuser==0.0.28 \
	threadpoolctl==3.8.0
PYTEST = HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False TOKENIZERS_PARALLELISM=false $(PY) -m pytest $(PYTEST_ARGS)
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)

# Without an NVIDIA GPU, torch is installed first and by itself. Where PyPI's Linux build is the large CUDA one, make
# takes a small CPU build with TORCH_INDEX=https://download.pytorch.org/whl/cpu (an index of torch and its dependencies).
TORCH_INDEX ?=
# HEADLESS=1: the demo without the board. PYTEST_ARGS: added to pytest's command line. BASE: the image to build on.
HEADLESS ?=
PYTEST_ARGS ?=
BASE ?=

.PHONY: help demo board test lint format types contracts demo-model locales image clean install dev

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.base ## the board with the demo fine-tune running; HEADLESS=1: no board, a table before/after
	$(VENV)/bin/tuneboard demo$(if $(filter-out 0,$(HEADLESS)), --headless)

board: $(VENV)/.base ## the board alone
	$(VENV)/bin/tuneboard board

test: $(VENV)/.dev ## all tests, Chromium and fonts included
	bash tests/setup_browser.sh
	$(PYTEST) --numprocesses auto --maxprocesses 4 tests

lint: $(VENV)/.dev ## ruff (rules and format) and codespell
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell

format: $(VENV)/.dev ## let ruff format and mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/.dev ## pyright on app and core
	$(VENV)/bin/pyright --pythonpath $(PY)

contracts: $(VENV)/.dev ## who may import whom
	$(VENV)/bin/lint-imports --no-cache

demo-model: $(VENV)/.base ## rebuild the demo data and the demo model from nothing
	$(PY) assets/demo/make_data.py
	$(PY) assets/demo/make_model.py

locales: $(VENV)/.base ## write locales/en.json from the docstrings and message codes
	$(PY) -m app.i18n

image: ## docker image; BASE=... for another base, TORCH_INDEX= (empty) for torch from PyPI
	docker build -t tuneboard $(if $(BASE),--build-arg BASE=$(BASE)) \
		$(if $(filter-out undefined default file,$(origin TORCH_INDEX)),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

clean: ## remove the venv, caches and built files; runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find app core tests assets -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(VENV)/.base ## make the venv and install Tuneboard in it
dev: $(VENV)/.dev ## the same with what lint, types and tests need

$(VENV)/.base: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Tuneboard needs python3, 3.11 or newer: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Tuneboard needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make a virtual environment: apt install python3-venv" >&2; exit 1; }
	@echo "Installing Tuneboard in $(VENV); the first time takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	@if [ -n "$(TORCH_INDEX)" ] || ! nvidia-smi -L >/dev/null 2>&1; then set -x; \
		$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),-c constraints.txt) $(TORCH); fi
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps --upgrade --target $(VENV)/extras torchao==0.18.0 # in the environment every run would import it
	BUILD_CUDA_EXT=0 $(PIP) install --no-deps --no-build-isolation --upgrade --target $(VENV)/gptq $(GPTQ) \
		|| echo "gptqmodel could not be built: the tests of GPTQ are skipped"
	@touch $@
