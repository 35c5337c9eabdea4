PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXECUTED := build/quickstart.ipynb

.PHONY: setup demo test test-gpu lint docs screenshots lab bench soak clean

setup: $(STAMP)

# torch is pinned: an open range would take the registry's newest build with several GB of CUDA packages.
$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c .ci/constraints.txt torch
	$(BIN)/pip install --quiet -c .ci/constraints.txt --editable .[notebook,interop] --group demo --group test --group lint
	touch $(STAMP)

demo: setup
	$(BIN)/python notebooks/run.py notebooks/quickstart.ipynb $(EXECUTED)

# Two modules at a time, in their order: half of what a test does is to wait.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python docs/build_api.py

lab: setup
	$(BIN)/jupyter lab notebooks/quickstart.ipynb

# The pictures in docs/images.
screenshots: setup
	$(BIN)/python docs/screenshots.py

bench: setup
	$(BIN)/python benchmarks/run.py

soak: setup
	$(BIN)/python benchmarks/soak.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
