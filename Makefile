# make demo   the main job on a real model, from nothing        make test   every test
# make lint   ruff and mypy                                     make bench  the speed and memory of this machine
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint bench clean

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[test,lint]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/lorikeet demo --output runs/demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/train_speed.py

clean:
	rm -rf $(VENV) runs
