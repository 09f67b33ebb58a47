# The two commands of a fresh machine: `make sweep` and `make test`. Both build the same environment first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
SWEEP_ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadgroup
COVERAGE_ARGS ?=
DIR ?= runs/default
PORT ?=

# torch and the torchvision that was built for it. With a GPU the plain releases are taken (`===` passes over builds
# with a suffix); without one, `==` lets a package index offer `+cpu` builds.
TORCH_VERSION := 2.14.1
TORCHVISION_VERSION := 0.29.1
EXACT := $(shell nvidia-smi -L >/dev/null 2>&1 && echo '===' || echo '==')
TORCH ?= torch$(EXACT)$(TORCH_VERSION) torchvision$(EXACT)$(TORCHVISION_VERSION)
PLUGINS := $(sort $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml)))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.tokenprune-installed
PYTEST := HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

.PHONY: help env test test-all unit coverage lint cluster sweep ui screenshots bench bench-sweep large chaos matrix range nightly golden docs-tables constraints clean

help: ## Show the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

env: $(STAMP) ## Create .venv with everything installed

$(STAMP): pyproject.toml constraints.txt $(addsuffix /pyproject.toml,$(PLUGINS))
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt pip
	$(PIP) install -c constraints.txt $(TORCH)
	$(PIP) install -c constraints.txt --build-constraint constraints.txt --group dev -e . $(addprefix -e ,$(PLUGINS))
	@touch $@

test: lint unit ## Lint, types, layers, generated tables, then the fast tests (7 to 11 minutes on two cores)

test-all: lint $(STAMP) ## As `test`, with the thorough tests too (25 to 35 minutes)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

unit: $(STAMP) ## Only the fast tests (PYTEST_ARGS="tests/cli -n 0")
	$(PYTEST) -m "not slow and not thorough" $(PYTEST_ARGS)

coverage: $(STAMP) ## The fast tests with line and branch coverage; COVERAGE_ARGS="--cov-report=html"
	$(PYTEST) -m "not slow and not thorough" --cov --cov-report=term:skip-covered $(COVERAGE_ARGS) $(PYTEST_ARGS)

cluster: $(STAMP) ## PostgreSQL, an MLflow server and two Ray nodes under kills (3 minutes; needs Debian's postgresql)
	TOKENPRUNE_NIGHTLY=1 $(PYTEST) tests/tracking/server/test_cluster.py

lint: $(STAMP) ## ruff, mypy, import-linter, generated tables
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/python docs/tables.py --check

sweep: $(STAMP) ## Compare the pruners on the shipped model (SWEEP_ARGS="--limit 32"); the same command again continues
	$(VENV)/bin/tokenprune sweep --out $(DIR) $(SWEEP_ARGS)

ui: $(STAMP) ## Open the MLflow dashboard of a sweep (DIR=runs/default PORT=5000)
	$(VENV)/bin/tokenprune ui $(DIR) $(if $(PORT),--port $(PORT))

screenshots: $(STAMP) ## Take the pictures of docs/img again, from a real sweep (minutes; needs Debian's chromium)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENPRUNE_NIGHTLY=1 TOKENPRUNE_SCREENSHOTS=$(CURDIR)/docs/img $(VENV)/bin/python -m pytest tests/browser

bench: $(STAMP) ## Measurements behind the defaults and the model card (an hour)
	$(VENV)/bin/python benchmarks/selectors/compare.py synthetic
	$(VENV)/bin/python benchmarks/selectors/compare.py scenes
	$(VENV)/bin/python -m benchmarks.scenes.evaluate tokenprune/checkpoints/scenes --count 4200
	$(VENV)/bin/python -m benchmarks.scenes.evaluate tokenprune/checkpoints/scenes-video --task scenes-video --count 500 --batch 20

large: $(STAMP) ## Memory and time of every pruner at 1024, 4096 and 16384 visual tokens (half an hour)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python benchmarks/large/run.py $(LARGE_ARGS)

bench-sweep: $(STAMP) ## 48 cells apart, one after another and shared (half an hour); the last line is JSON
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true $(VENV)/bin/python -m benchmarks.sharing.bench_sweep \
	  --out benchmarks/sharing/results.json

chaos: $(STAMP) ## A sweep of 500 cells under 100 random kills (10 minutes); the last line is a JSON summary
	$(VENV)/bin/python benchmarks/chaos/chaos.py

matrix: $(STAMP) ## Every pruner on a small model of every family; writes docs/matrix.md (5 minutes)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.matrix.run

range: $(STAMP) ## Families' tests and matrix at both ends of the range of transformers, in .venv-range (half an hour)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.matrix.ends $(RANGE_ARGS)

nightly: lint $(STAMP) ## All tests, the slow ones too
	TOKENPRUNE_NIGHTLY=1 $(PYTEST) $(PYTEST_ARGS)

golden: DIR = plugins/tokenprune-zoo/tests/golden
golden: $(STAMP) ## Outputs of published implementations in a folder (DIR=...) against ours
	$(VENV)/bin/python -m tokenprune.testing.golden $(DIR)

docs-tables: $(STAMP) ## Write the generated tables of README and docs again
	$(VENV)/bin/python docs/tables.py

constraints: ## Write constraints.txt again from the environment as it is
	{ sed '/^[^#]/,$$d' constraints.txt; \
	  $(VENV)/bin/python -m pip freeze --all --exclude-editable | sed -E '/ @ |^-e /d; s/\+[A-Za-z0-9.]+$$//' | sort -f; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove the environment and caches; sweeps in runs/ stay
	rm -rf $(VENV) .venv-range .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
