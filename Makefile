# Everything a fresh machine needs: Python 3.11+, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKSPACE ?= data

.PHONY: demo test test-cpus test-wheel ui lint format clean
.DEFAULT_GOAL := demo

demo: $(STAMP)  ## the whole graph on the shipped data, with the bundled model
	$(BIN)/icon-assets -w $(WORKSPACE) run

ui: $(STAMP)  ## Dagster on 127.0.0.1:3000
	$(BIN)/icon-assets -w $(WORKSPACE) ui

test: $(STAMP)  ## all tests, two at a time
	$(BIN)/python -m pytest -n 2

# What depends on the kind of CPU; instructions that this one has are taken away by their libraries' own variables.
ENGINE_TESTS := $(addprefix icon_assets_tests/,e2e/test_bundled_model.py core/engine/test_engine.py core/engine/test_compiling.py core/engine/test_attention.py)

test-cpus: $(STAMP)  ## accuracy and engine as on CPUs without AMX, and with AVX2 only
	ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 $(BIN)/python -m pytest -n 2 $(ENGINE_TESTS)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -n 2 $(ENGINE_TESTS)

test-wheel: $(STAMP)  ## the wheel, in a new virtual environment of $(PYTHON)
	$(BIN)/python -m icon_assets_tests.wheel --python $(PYTHON)

lint: $(STAMP)  ## format, rules, types, and which module may import which
	$(BIN)/ruff format --check icon_assets icon_assets_tests
	$(BIN)/ruff check icon_assets icon_assets_tests
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(STAMP)
	$(BIN)/ruff format icon_assets icon_assets_tests
	$(BIN)/ruff check --fix icon_assets icon_assets_tests

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable . --group dev
	$(BIN)/icon-assets model --install
	touch $(STAMP)

clean:  ## remove what runs produced; the inputs stay
	rm -rf $(WORKSPACE)/store $(WORKSPACE)/models $(WORKSPACE)/checkpoints $(WORKSPACE)/dagster_home $(WORKSPACE)/exports
