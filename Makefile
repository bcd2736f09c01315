# Everything runs in .venv, made by plain pip. `make test` on a fresh clone needs nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test test-slow lint demo bench clean

.venv/installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint,bench]'
	touch $@

install: .venv/installed

test: .venv/installed
	$(BIN)/pytest

test-slow: .venv/installed
	$(BIN)/pytest -m slow --timeout 3600

lint: .venv/installed
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/mypy

demo: .venv/installed
	$(BIN)/python docs/demo.py

bench: .venv/installed
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv dist demo-out
