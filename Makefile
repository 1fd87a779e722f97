# Everything a newcomer needs: `make demo`, `make test`, `make up`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv
COMPILE := $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
    --custom-compile-command "make lock"
# Most of the time tests wait for processes: more at once than there are cores. Those of a file share what it started.
PARALLEL ?= -n 3 --dist loadfile --no-loadscope-reorder
# Faults are marked wherever their tests are; those of tests/faults are run by nothing else.
FAULT_TESTS := tests
FAULTS := bench/results/faults.json
CHAOS := bench/results/chaos.json
PAGE := docs/reliability.md
SECONDS ?= 60
SEED ?= 7

.PHONY: help docs install lock audit demo up test providers compatibility-batches faults chaos lint mutants check format bench clean

help:  ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv and install the project with its tools into it

# Hashes are checked: what is installed is what was locked, on every machine. A .venv of another Python is made anew.
# uv, not pip, does the large part: it takes a tenth of the time and shows its progress.
$(STAMP): requirements-build.lock requirements-dev.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: embedmill needs Python 3.11 or newer," \
	    "and $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@if test -e $(VENV) && [[ "$$($(BIN)/python --version 2>&1)" != "$$($(PYTHON) --version)" ]]; then \
	    echo "$(VENV) is of another Python and is made anew"; rm -rf $(VENV); fi
	@echo "install 1/3: a virtual environment in $(VENV), with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-build.lock
	@echo "install 2/3: $$(grep -c == requirements-dev.lock) packages of requirements-dev.lock, hashes checked"
	@$(UV) pip install --compile-bytecode --require-hashes --requirement requirements-dev.lock
	@echo "install 3/3: embedmill itself, which stays where it is"
	@$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

lock: install  ## Choose the newest versions that pyproject.toml allows and write them, with hashes, to the lock files
	printf 'uv\nsetuptools\n' | $(COMPILE) --output-file requirements-build.lock -
	$(COMPILE) --extra cli --output-file requirements.lock pyproject.toml
	$(COMPILE) --all-extras --output-file requirements-dev.lock pyproject.toml

audit:  ## Look up known vulnerabilities of the locked packages; says so where there is no network to ask
	$(PYTHON) .ci/audit.py requirements-dev.lock

docs: install  ## Make the tables of docs/ that are made from the code
	$(BIN)/python -m cli.output.provider_table docs/providers.md

demo: install  ## Embed a real corpus, search it, see the whole system work
	$(BIN)/python examples/demo.py

up: install  ## Keep the whole stack in the foreground
	$(BIN)/embedmill up

test: install  ## Run the tests; services that are missing are skipped with a reason
	$(BIN)/python -m pytest $(PARALLEL) -rs --ignore tests/faults

providers: install  ## Run the tests of all adapters and print what each provider can do, by their results
	$(BIN)/python -m tests.contract.provider_matrix

compatibility-batches: install  ## Run clients of other people against files, batches and webhooks; the table goes to docs
	$(BIN)/python -m tests.clients.run docs/compatibility.md

faults: install  ## Break every part on purpose, one fault after another; the numbers go to docs/reliability.md
	EMBEDMILL_TEST_FAULTS=$(FAULTS) $(BIN)/python -m pytest $(PARALLEL) -m fault $(FAULT_TESTS)
	$(BIN)/python -m tests.faults.table $(FAULTS) $(PAGE)

chaos: install  ## Break parts at random for a while: make chaos SECONDS=600 SEED=7
	$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) --seed $(SEED) --out $(CHAOS)
	$(BIN)/python -m tests.faults.table $(CHAOS) $(PAGE)

lint: install  ## Format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: install  ## Apply small faults to a copy of the code, one at a time: the tests must fail with each
	$(BIN)/python -m tests.mutants

check: lint  ## lint, and the unit, contract and architecture tests
	$(BIN)/python -m pytest tests/unit tests/contract tests/architecture

format: install  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## Measure against a fake upstream; results go to bench/results
	$(BIN)/python -m bench.run

clean:  ## Remove the virtual environment and everything made by tools
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
