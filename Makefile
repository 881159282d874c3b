# Both `make run` and `make test` set themselves up: nothing is needed but Python 3.11, make and git.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# uv is several times as fast, where it is there. It is told what pip was told.
ifneq ($(shell command -v uv 2>/dev/null),)
INSTALL := $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)") \
	$(if $(PIP_CERT),SSL_CERT_FILE="$(PIP_CERT)") uv pip install --python $(BIN)/python
else
INSTALL := $(BIN)/python -m pip install
endif

# Telemetry is off unless it was chosen.
export DO_NOT_TRACK ?= true
export DVC_NO_ANALYTICS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

# Two workers for the tests, a thread each, so that they do not fight for the cores; threads that a
# stage asks for sleep while they wait.
WORKERS ?= 2
test coverage quick: export OMP_NUM_THREADS ?= 1
test coverage quick: export OMP_WAIT_POLICY ?= PASSIVE

# Stages are run as `danceflow stage ...`: the environment's programs come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup run test coverage quick check audit sbom docs ui team-up team-down teachers clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY)  ## install everything into .venv

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed" >&2; exit 2; }
	@echo "setting up $(VENV): some minutes and 3 GB, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(READY)  ## run the whole pipeline on the embedded default
	danceflow run $(ARGS)

test: $(READY)  ## run every test
	python -m pytest -n $(WORKERS) $(ARGS)

coverage: $(READY)  ## run every test and ask for 85 % of the lines and branches; takes longer
	python -m pytest -n $(WORKERS) --cov --cov-report=term --cov-fail-under=85 $(ARGS)

quick: $(READY)  ## run the tests of one minute: short ones, without stages, stores or programs
	python -m pytest -n $(WORKERS) --quick -q $(ARGS)

check: $(READY) docs  ## check style, types, import direction, the graph and the docs
	ruff check .
	ruff format --check .
	mypy
	mypy benchmarks/*.py deploy/sbom.py
	lint-imports
	danceflow check

audit: $(READY)  ## look every pinned version up among known vulnerabilities (needs the network)
	pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

sbom: $(READY)  ## write sbom.json: the software bill of materials, the same for the same pins
	python deploy/sbom.py sbom.json

docs: $(READY)  ## build the site of the docs into site/
	python docs/_site/reference.py
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

ui: $(READY)  ## open the pages of MLflow and Prefect
	danceflow ui

team-up: $(READY)  ## start a team's servers on this machine
	danceflow team up

team-down: $(READY)  ## end them; their data stay
	danceflow team down

teachers: $(READY)  ## train the teachers again (hours on a CPU)
	danceflow teachers

clean:  ## remove caches and rolling checkpoints; keeps .venv, data, models, reports and the team
	find .danceflow -mindepth 1 -maxdepth 1 ! -name team -exec rm -rf {} + 2>/dev/null || true
	rm -rf site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis htmlcov
	rm -f .coverage .coverage.*
	find src flows tests -name __pycache__ -type d -prune -exec rm -rf {} +
