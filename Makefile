# distill: `make run` gives a distilled student, `make test` a green test run. Both start from nothing.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# What Python compiles is kept where the environment says otherwise, too: tests start many processes.
export PYTHONDONTWRITEBYTECODE =

help:  ## List every target
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: .venv/installed  ## Create .venv and install what the lock file pins

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint requirements.lock --editable '.[test]'
	@touch $@

run: install  ## Distil the embedded teacher on the embedded corpus (args="key=value …" to override)
	$(BIN)/python -m distill $(args)

browser:  ## See that there is a Chromium to open reports in; Debian's is installed where there is none
	@which chromium chromium-browser google-chrome | grep -q . || { \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } > /dev/null || { \
		echo "the tests open a report in a browser: install Chromium (apt-get install chromium)"; exit 1; }

oldest: .venv/oldest/installed  ## Put the oldest transformers that runs a student beside what is installed

.venv/oldest/installed: .venv/installed tests/oldest.lock
	rm -rf .venv/oldest
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --requirement tests/oldest.lock --target .venv/oldest
	@touch $@

test: install lint types browser oldest  ## Lint, check types, run every test
	$(BIN)/python -m pytest

lint: install  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## Check types
	$(BIN)/mypy

lock: install  ## Write down what is installed now
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > requirements.lock

clean:  ## Remove the virtual environment and caches; outputs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache

.PHONY: help install run browser oldest test lint types lock clean
