# `make migrate` and `make test` set up what they need: a .venv, installed from pyproject.toml with constraints.txt.
# make migrate DATA=bars.parquet ARGS='--seed 1'

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
ARGS ?=
# One thread per library: on few shared cores, spinning threads slow each other down.
export OMP_NUM_THREADS ?= 1

RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
.DEFAULT_GOAL := help
.PHONY: help up down migrate serve trade test test-slow chaos rehearse docs check format bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

up: $(RUNTIME)  ## everything on this machine: Prefect, flows, service, dashboard, paper trading; DATA=bars.parquet, ARGS='--backend-port 8300'
	$(BIN)/hrm up $(if $(DATA),--data "$(DATA)") $(ARGS)

down: $(RUNTIME)  ## end what `make up` started
	$(BIN)/hrm down $(ARGS)

migrate: $(RUNTIME)  ## the whole migration from PPO to HRM: DATA=bars.parquet for your own, ARGS='--seed 1' for options
	$(BIN)/hrm migrate $(if $(DATA),--data "$(DATA)") $(ARGS)

serve: $(RUNTIME)  ## the inference service: ARGS='--champion ppo/...'
	$(BIN)/hrm serve $(ARGS)

trade: $(RUNTIME)  ## paper trading against the running service
	$(BIN)/hrm trade $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(DEV)  ## all tests but the slow ones, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: $(DEV)  ## the proofs that take minutes or the whole machine
	$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

chaos: $(DEV)  ## rollbacks under 10,000 kills, stale orders by the million, the live desk killed 1,000 times: two hours
	$(BIN)/hrm bench rollback --kills 10000 --rollbacks 500 --orders 1000000 $(ARGS)
	$(BIN)/hrm bench live --only kills --kills 1000 $(ARGS)

rehearse: $(RUNTIME)  ## a trading day that goes wrong: canary, rollback, hand-over, and a page about it
	$(BIN)/hrm rollout rehearse $(if $(DATA),--data "$(DATA)") $(ARGS)

docs: $(DEV)  ## the documents and the reference as a site, in build/site
	$(BIN)/zensical build --strict

check: $(DEV)  ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(RUNTIME)  ## the numbers of the README: ARGS='learning --seeds 3'
	$(BIN)/hrm bench $(if $(ARGS),$(ARGS),engine) --json

clean:  ## remove the environment and the caches, never .hrm
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: some platforms choose another build when it comes as a dependency.
$(RUNTIME): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[flows]'
	@touch $@

# The broker's SDK pins old releases that torch refuses; it works with current ones (docs/adr/0003-pins.md).
$(DEV): $(RUNTIME)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt "fyers-apiv3==3.2.0"
	@touch $@
