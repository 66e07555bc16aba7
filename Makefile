# setup · demo · test · lint · docs · bench: each works alone, from a fresh clone.
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint docs bench
setup: $(STAMP)

# torch first and pinned: an unpinned resolve would pull gigabytes of CUDA onto a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/pyright

docs: setup
	$(BIN)/python -m server.cli.reference

bench: setup
	$(BIN)/python -m benchmarks
