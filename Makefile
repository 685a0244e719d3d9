# Everything goes through .venv, made with PYTHON (3.11 or newer) and the exact versions of constraints.txt.
PYTHON  ?= python3
WORKERS ?= 2

VENV  := .venv
PY    := $(VENV)/bin/python
DEPS  := $(VENV)/.deps.stamp
READY := $(VENV)/.ready.stamp

# Every pip below, those that `python -m build` and build isolation start included, sees the pins.
# (pip < 25.3 applies PIP_CONSTRAINT to isolated builds, later ones PIP_BUILD_CONSTRAINT.)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format docs graphs coverage hostile bench sanitize wheel clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with pinned versions and Anyzoo in editable mode

run: $(READY) ## run the demo
	$(PY) -m zoo.demo

test: $(READY) ## run the tests (WORKERS=2; ARGS="-k registry")
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

lint: $(READY) ## ruff check, ruff format --check, mypy, import contracts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(READY) ## let ruff fix and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(READY) ## build the documentation into build/site, strictly
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

graphs: $(READY) ## rebuild the packaged graphs
	$(PY) tools/build_graphs.py

coverage: $(READY) ## tiny models of transformers' architectures on every backend (ARGS="--sample 10 --check")
	$(PY) benchmarks/coverage $(ARGS)

hostile: $(READY) ## damaged and hostile files of every form, for two minutes (ARGS="--seconds 1200 --write")
	$(PY) benchmarks/check_hostile.py --check $(ARGS)

bench: $(READY) ## run every benchmarks/bench_*.py
	@set -e; for script in $(sort $(wildcard benchmarks/bench_*.py)); do echo "==> $$script"; $(PY) $$script; done

sanitize: ## run the kernels under address, undefined-behaviour and thread sanitizers
	@set -e; for kinds in address,undefined thread; do \
		folder=build/sanitize-$${kinds%,*}; echo "==> $$kinds"; \
		cmake -S . -B $$folder -DZOO_SANITIZE=$$kinds -DCMAKE_BUILD_TYPE=Release >/dev/null; \
		cmake --build $$folder --parallel 2 >/dev/null; $$folder/kernel_test; \
		FUZZ_RUNS=200000 $$folder/fuzz zoo/native/tests/fuzz.corpus; \
	done

wheel: $(READY) ## build the wheel into dist/
	$(PY) -m build --wheel

clean: ## remove build products and caches
	rm -rf build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find zoo converters tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Anyzoo needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DEPS): constraints.txt pyproject.toml | $(PY)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[all,dev,docs]'
	@touch $@

# An editable install records which packages exist, copies the registry and holds the compiled engine: one of them
# changed, it is made anew (quick).
PACKAGES := $(shell find zoo converters -name __init__.py 2>/dev/null)
NATIVE := $(wildcard zoo/native/*.h zoo/native/src/*.* zoo/native/src/*/*.*)
$(READY): $(DEPS) CMakeLists.txt $(wildcard registry.json) $(PACKAGES) $(NATIVE)
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
