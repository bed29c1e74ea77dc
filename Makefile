# From a bare clone with Python 3.11 and pip: `make demo`, `make test`.

PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
BENCH_BIN := .venv-bench/bin
INSTALLED := .venv/.installed
BENCH_INSTALLED := .venv-bench/.installed
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt
# by itself and before all others: a range in a dependency would fetch a build of several gigabytes
TORCH = $$(grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test test-all compatibility bench clean

help:
	@echo 'make demo      install into .venv, train something and show what fulmen does'
	@echo 'make test      lint, types and the quick tests: what CI runs'
	@echo 'make test-all  the same with the slow tests, and those for a GPU where there is one'
	@echo 'make lint      ruff and mypy only'
	@echo 'make compatibility  write docs/compatibility.md: what of Lightning is here, and what differs'
	@echo 'make bench     fulmen side by side with other frameworks, in .venv-bench'
	@echo 'make clean     remove caches and the outputs of runs; the environments stay'

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) $(TORCH)
	$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/fulmen demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 -m 'not slow and not gpu'

test-all: lint
	$(BIN)/pytest -n 2

compatibility: $(INSTALLED)
	$(BIN)/python scripts/compatibility.py

$(BENCH_INSTALLED): pyproject.toml constraints.txt
	test -x $(BENCH_BIN)/python || $(PYTHON) -m venv .venv-bench
	$(BENCH_BIN)/python $(PIP_INSTALL) $(TORCH)
	$(BENCH_BIN)/python $(PIP_INSTALL) -e '.[bench]'
	touch $@

bench: $(BENCH_INSTALLED)
	$(BENCH_BIN)/python benchmarks/run_all.py

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis runs fulmen_runs lightning_logs checkpoints
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
