# Everything goes into .venv; `make` alone lists what there is.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
export PYTHON KEEP

BIN := .venv/bin
RUN := .venv/.installed-run
DEV := .venv/.installed-dev

# Sizes; override on the command line, as in `make sim SEEDS=50`.
SEEDS ?= 1000
STEPS ?= 2000
JOBS ?= 10000
WORKERS ?= logical
# More words for pytest, the chaos run or the benchmark, as in `make test ARGS="-k fence"`.
ARGS ?=

# What a test run must not do is download: the tools are told so here, and tests/conftest.py refuses
# connections that leave the machine.
OFFLINE := PIP_NO_INDEX=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
PYTEST := $(OFFLINE) $(BIN)/python -m pytest

.PHONY: help setup demo test check lint types contracts structure format sim chaos bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(DEV) ## Install everything, the checking tools included, into .venv
	@$(BIN)/gpuward --version

demo: $(RUN) ## Two simulated engines, jobs through a queue, one engine killed on the way (KEEP=1 stays up)
	@$(BIN)/python examples/demo/run.py

test: $(DEV) ## Run the tests, 100 simulation seeds and a short chaos run included; nothing is downloaded
	$(PYTEST) -q -n $(WORKERS) --maxprocesses 8 --dist worksteal -m "not gpu" $(ARGS)

check: lint types contracts structure ## Lint, format, types, import contracts, and that tests mirror modules

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

contracts: $(DEV)
	$(BIN)/lint-imports

structure: $(DEV)
	$(PYTEST) -q tests/packaging

format: $(DEV) ## Format the code and mend what the linter can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

sim: $(DEV) ## Run the deterministic simulation at full size (SEEDS, STEPS)
	GPUWARD_SIM_SEEDS=$(SEEDS) GPUWARD_SIM_STEPS=$(STEPS) \
		$(PYTEST) -q -n $(WORKERS) --maxprocesses 8 --timeout 0 -m sim tests/simulation $(ARGS)

chaos: $(DEV) ## Send JOBS jobs while engines and executors are killed at random; every one must be answered
	$(BIN)/python tests/chaos/run.py --jobs $(JOBS) $(ARGS)

bench: $(DEV) ## Measure jobs/s and added latency beside two bare baselines; JSON goes to bench/out/
	$(BIN)/python -m bench $(ARGS)
	$(BIN)/python -m bench.footprint

clean: ## Remove caches and build output (.venv stays; remove it by hand to start anew)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build bench/out
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(RUN): pyproject.toml scripts/venv.sh
	@scripts/venv.sh run

$(DEV): pyproject.toml scripts/venv.sh
	@scripts/venv.sh dev
