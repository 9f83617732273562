# Everything that is needed is installed into .venv and .venv-eas; nothing outside this directory is touched but
# pip's and warmtap's caches.
PYTHON ?= python3
VENV := .venv
EAS_VENV := .venv-eas
BIN := $(VENV)/bin
PIP_QUIET := --quiet --disable-pip-version-check

.PHONY: help setup demo bench test unit lint types check schema requirements clean

help:
	@echo "make demo    set up, then the main job on real input; results in demo-out/"
	@echo "make bench   CPU per request against nginx and aiohttp (needs nginx, wrk, h2load); results in bench-out/"
	@echo "make test    set up, then all tests"
	@echo "make unit    the tests that start no process and no TensorFlow: seconds"
	@echo "make check   lint and types"
	@echo "make schema  regenerate capture/schema/descriptors.binpb"
	@echo "make requirements  pin anew what requirements/ holds"

setup: $(VENV)/.installed $(EAS_VENV)/.installed

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@echo "setting up $(VENV) (TensorFlow is some 600 MB: about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_QUIET) -r requirements/dev.txt
	@$(BIN)/python -m pip install $(PIP_QUIET) --no-deps --editable .
	@touch $@

# The real EAS SDK needs a protobuf that TensorFlow cannot live with.
$(EAS_VENV)/.installed: tests/clients/eas/requirements.txt
	@echo "setting up $(EAS_VENV)"
	@$(PYTHON) -m venv $(EAS_VENV)
	@$(EAS_VENV)/bin/python -m pip install $(PIP_QUIET) -r tests/clients/eas/requirements.txt
	@touch $@

demo: setup
	@$(BIN)/python -m tests.demo.run --out demo-out

ROUNDS ?= 5
bench: setup
	@$(BIN)/python -m tests.bench --rounds $(ROUNDS)

test: setup
	$(BIN)/python -m pytest

unit: setup
	$(BIN)/python -m pytest -m "not server"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types

schema: setup
	$(BIN)/python -m capture.schema.generate

# Needs uv on the PATH. The files name versions only, no registry. dev is what tests run with; the images (sidecar,
# refresh, and build for their wheel) get the same versions.
PIN := uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --quiet
requirements:
	$(PIN) pyproject.toml --extra tensorflow --group dev -o requirements/dev.txt
	$(PIN) pyproject.toml --constraint requirements/dev.txt -o requirements/sidecar.txt
	$(PIN) pyproject.toml --extra tensorflow --constraint requirements/dev.txt -o requirements/refresh.txt
	echo 'hatchling>=1.27' | $(PIN) - -o requirements/build.txt
	$(PIN) tests/clients/eas/requirements.in -o tests/clients/eas/requirements.txt

clean:
	rm -rf $(VENV) $(EAS_VENV) demo-out bench-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
