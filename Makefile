# Every target does its own set-up in .venv; a second call finds it done.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.neurtx-ready
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

# PyPI's torch for Linux brings gigabytes of CUDA. torch's own index has the build for CPUs, and pip
# takes it first: 2.13.0+cpu counts as later than 2.13.0. Where that index is out of reach, torch
# comes from where pip looks anyway. What torch needs comes with all the rest.
CPU_TORCH := --no-deps --timeout 15 --retries 1 \
  --extra-index-url https://download.pytorch.org/whl/cpu torch

.PHONY: help setup test slow demo latest

help:
	@echo "make setup   Python 3.11 environment in .venv with everything in it"
	@echo "make test    ruff, mypy and the tests"
	@echo "make slow    the tests that take minutes"
	@echo "make latest  the tests with the newest versions that pyproject.toml allows, in .venv-latest"
	@echo "make demo    the whole way on the bundled model, from text to netlist"

setup: $(READY)

$(READY): pyproject.toml setup.py constraints.txt cli/install.py neurtransformer/spiking/fused.c
	@$(PYTHON) -c "" 2>/dev/null || { \
	  echo "make: $(PYTHON) is missing: install Python 3.11, or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(CPU_TORCH)
	$(PIP) --editable ".[dev]"
	$(BIN)/neurtx install
	@touch $@

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2

slow: setup
	$(PIP) lm-eval
	$(BIN)/python -m pytest -q -m slow
	$(BIN)/python -m pytest -q -m "not slow" tests/test_lm_eval.py

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# What users get who install without constraints.txt, once versions have moved on.
latest:
	$(PYTHON) -m venv --clear .venv-latest
	.venv-latest/bin/python -m pip install --quiet $(CPU_TORCH)==2.13.*
	.venv-latest/bin/python -m pip install --quiet --editable ".[dev]"
	.venv-latest/bin/neurtx install
	.venv-latest/bin/python -m pip list
	.venv-latest/bin/python -m pytest -q -n 2
