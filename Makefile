# Everything runs in an environment of its own, made on first use.
PYTHON ?= python3
PORT ?= 8080
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help run test test-mechanisms test-hostile bench lint types clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

run: $(READY) ## the service on 127.0.0.1:8080 with two demo engines
	@$(BIN)/kv-indexer demo --port $(PORT)

test: $(READY) ## the whole test suite, with branch coverage
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

test-mechanisms: $(READY) ## every recovery test with its mechanism switched off: each has to fail
	TEST_MECHANISMS_OFF=1 TEST_TIMEOUT_MAX_S=4 $(BIN)/python -m pytest tests/scenarios --no-header -q

test-hostile: $(READY) ## hostile frames, requests and a flood of ten seconds, with its figures
	TEST_FLOOD_S=10 $(BIN)/python -m pytest tests/scenarios/test_flood.py tests/scenarios/test_hostile_frames.py tests/scorer_api/test_hostile_requests.py -rP

bench: $(READY) ## measure on this machine; a table, and build/bench.json
	$(BIN)/python -m bench

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

clean: ## remove the environment and what was made by running
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* *.egg-info
