# Every target does its own set-up in .venv; a second call finds it done.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.neurtx-ready

.PHONY: help setup test slow demo

help:
	@echo "make setup   Python 3.11 environment in .venv with everything in it"
	@echo "make test    ruff, mypy and the tests"
	@echo "make slow    the tests that take minutes"
	@echo "make demo    the whole way on the bundled model, from text to netlist"

setup: $(READY)

# torch comes first and pinned: asked for loosely, pip may fetch gigabytes of CUDA with it.
$(READY): pyproject.toml setup.py cli/install.py
	@$(PYTHON) -c "" 2>/dev/null || { \
	  echo "make: $(PYTHON) is missing: install Python 3.11, or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/neurtx install
	@touch $@

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2

slow: setup
	$(BIN)/python -m pytest -q -m slow

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh
