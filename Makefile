# Two commands do everything: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test setup lint native-test fast-test integration-test soak bench clean

demo: setup
	$(BIN)/python -m sllm_bench.demo

test: setup lint native-test fast-test integration-test

setup: $(READY)

$(READY): pyproject.toml tools/setup.sh tools/install_vllm.py $(wildcard core/csrc/*.*pp core/csrc/CMakeLists.txt)
	PYTHON=$(PYTHON) VENV=$(VENV) tools/setup.sh
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

native-test: setup
	tools/native_tests.sh all

fast-test: setup
	$(BIN)/python -m pytest tests -m "not soak"

integration-test: setup
	$(BIN)/python -m pytest integration -m "not soak"

soak: setup
	$(BIN)/python -m pytest tests integration -m soak

bench: setup
	tools/bench.sh

clean:
	rm -rf build dist .venv .venv-bench .models .mypy_cache .ruff_cache .pytest_cache .hypothesis
