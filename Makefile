# Everything runs in .venv, made by plain pip. `make test` on a fresh clone needs nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test test-slow lint package demo bench clean

.venv/installed: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint,bench,train]'
	touch $@

install: .venv/installed

test: .venv/installed
	$(BIN)/pytest -n auto --dist loadfile

test-slow: .venv/installed
	$(BIN)/pytest -m slow --timeout 3600

lint: .venv/installed
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# A wheel made from the sdist, in an empty environment, imported with every warning an error.
package: .venv/installed
	rm -rf dist .venv-package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd dist && ../.venv-package/bin/python -W error -c 'import otus; print("otus", otus.__version__, "imports cleanly")'
	cd dist && ../.venv-package/bin/otus predict ../docs/images/taxonomy.jpg --json > /dev/null
	rm -rf .venv-package

demo: .venv/installed
	$(BIN)/python docs/demo.py

bench: .venv/installed
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv .venv-package dist demo-out
