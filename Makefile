# Everything a newcomer needs: `make demo`, `make test`, `make up`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Most of the time tests wait for processes: more at once than there are cores. Tests that share a stack stay together.
PARALLEL ?= -n 3 --dist loadgroup

.PHONY: help install demo up test check format bench clean

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
