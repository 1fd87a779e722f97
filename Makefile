# Everything a newcomer needs: `make demo`, `make test`, `make up`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Most of the time tests wait for processes: more at once than there are cores. Those of a file share what it started.
PARALLEL ?= -n 3 --dist loadfile --no-loadscope-reorder
FAULTS := bench/results/faults.json
CHAOS := bench/results/chaos.json
PAGE := docs/reliability.md
SECONDS ?= 60
SEED ?= 7

.PHONY: help install demo up test faults chaos check format bench clean

help:  ## Show this help
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv and install the project with its tools into it

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: install  ## Embed a real corpus, search it, see the whole system work
	$(BIN)/python examples/demo.py

up: install  ## Keep the whole stack in the foreground
	$(BIN)/embedmill up

test: install  ## Run the tests; services that are missing are skipped with a reason
	$(BIN)/python -m pytest $(PARALLEL) --ignore tests/faults

faults: install  ## Break every part on purpose, one fault after another; the numbers go to docs/reliability.md
	EMBEDMILL_TEST_FAULTS=$(FAULTS) $(BIN)/python -m pytest $(PARALLEL) -m fault
	$(BIN)/python -m tests.faults.table $(FAULTS) $(PAGE)

chaos: install  ## Break parts at random for a while: make chaos SECONDS=600 SEED=7
	$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) --seed $(SEED) --out $(CHAOS)
	$(BIN)/python -m tests.faults.table $(CHAOS) $(PAGE)

check: install  ## Format, lint, types, import contract, unit and contract tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit tests/contract tests/architecture

format: install  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## Measure against a fake upstream; results go to bench/results
	$(BIN)/python -m bench.run

clean:  ## Remove the virtual environment and everything made by tools
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
