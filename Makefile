# setup · demo · check · test · coverage · lint · docs · bench · bundle: each works alone, from a fresh clone.
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=loadfile

.PHONY: setup demo check check-tests test coverage lint docs bench bundle
setup: $(STAMP)

# torch first and pinned: an unpinned resolve would pull gigabytes of CUDA onto a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

# Lint and the fast tests, side by side: the loop while writing.
check: setup
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint check-tests

check-tests: setup
	$(BIN)/python -m pytest -q -m "not slow" $(PARALLEL)

# Every test, by up to four processes; a file stays in one, so that its fixtures are made once.
test: setup
	$(BIN)/python -m pytest $(PARALLEL)

# Line and branch coverage of the whole suite, also of the processes that tests start.
coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/pyright

docs: setup
	$(BIN)/python -m server.cli.reference

bench: setup
	$(BIN)/python -m benchmarks

# What Claude Desktop installs by a double click: an MCP bundle of what is committed.
bundle:
	mkdir -p dist
	git archive --format=zip --add-file=packaging/mcpb/manifest.json -o dist/omnigen2-mcp.mcpb HEAD \
		pyproject.toml README.md LICENSE server tools omnigen2 storage
