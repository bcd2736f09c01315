# Everything runs in .venv, made by plain pip. `make test` on a fresh clone needs nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test test-avx2 test-slow lint docs package demo bench clean

CPU_WHEELS := https://download.pytorch.org/whl/cpu
WITH_CUDA := plain pip, which brings PyTorch with CUDA
REACH := import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)

# On Linux plain pip brings torch with gigabytes of CUDA. Without an NVIDIA GPU torch's own CPU wheels come first, into the
# environment $(1), where they can be reached within seconds.
define cpu_torch
	@if [ "$$(uname)" = Linux ] && [ ! -e /dev/nvidiactl ] && ! nvidia-smi > /dev/null 2>&1; then \
		if timeout 10 $(1)/bin/python -c '$(REACH)' $(CPU_WHEELS)/torch/ 2> /dev/null; then \
			echo "no NVIDIA GPU: PyTorch for the CPU"; \
			$(1)/bin/pip install --quiet --disable-pip-version-check --retries 1 --timeout 10 \
				--index-url $(CPU_WHEELS) 'torch>=2.8' 'torchvision>=0.23' || echo "failed: $(WITH_CUDA)"; \
		else echo "no NVIDIA GPU, but $(CPU_WHEELS) cannot be reached: $(WITH_CUDA)"; fi; \
	fi
endef

.venv/installed: pyproject.toml
	@echo "installing into .venv, once: some minutes, most of them without a word; 2 GB of disk, 7 GB with CUDA"
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(call cpu_torch,.venv)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint,docs,bench,train,export]'
	touch $@

install: .venv/installed

# A crash ends the run, because pytest-xdist hangs after it replaces a worker.
test: .venv/installed
	$(BIN)/pytest -n auto --dist loadfile --max-worker-restart 0

# What depends on the chip, on this one as if it had no AVX-512.
test-avx2: .venv/installed
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/pytest -n auto -m "not slow" \
		tests/parts/test_precision.py tests/parts/test_fusion.py tests/parts/test_ranking.py \
		tests/detection/test_dense_detectors.py tests/reports/test_one_pass_stages.py \
		tests/test_systems_contract.py -k "precision or bfloat16 or fast or rounding or ranking or alone or autocast"

test-slow: .venv/installed
	$(BIN)/pytest -m slow --timeout 3600

lint: .venv/installed
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# The site, every warning an error: dead links within it and names that are not there, too. Open docs/_build/index.html.
docs: .venv/installed
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --jobs auto --quiet docs docs/_build

# A wheel made from the sdist, in an empty environment, imported with every warning an error.
package: .venv/installed
	rm -rf dist .venv-package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv .venv-package
	$(call cpu_torch,.venv-package)
	.venv-package/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd dist && ../.venv-package/bin/python -W error -c 'import otus; print("otus", otus.__version__, "imports cleanly")'
	cd dist && ../.venv-package/bin/otus predict ../docs/images/taxonomy.jpg --json > /dev/null
	rm -rf .venv-package

demo: .venv/installed
	$(BIN)/python docs/demo.py

bench: .venv/installed
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv .venv-package dist demo-out docs/_build docs/generated
