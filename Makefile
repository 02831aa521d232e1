# Set-up, the demonstration, the tests. `make` alone prints what there is.

PYTHON ?= python3.11
VENV ?= .venv
# Which Detectron2. Empty: keep what imports already, else the pinned wheel of the package registry.
DETECTRON2 ?=
PYTEST_ARGS ?=
# Pictures that `make demo` scores; none: synthetic streets.
PHOTOS ?=
# Data sets of `make compare` (a folder of configs/), and KEY VALUE pairs for all its runs.
CONFIG_SET ?= synthetic
COMPARE_ARGS ?=
TORCH_PAIR := torch==2.14.1 torchvision==0.29.1

PY := $(VENV)/bin/python
# An environment that exists brings its own interpreter; one named by the user is still checked against it.
ifeq ($(origin PYTHON),file)
  SETUP_PYTHON := $(if $(shell "$(PY)" -c "print(1)" 2>/dev/null),$(PY),$(PYTHON))
else
  SETUP_PYTHON := $(PYTHON)
endif
SETUP = $(SETUP_PYTHON) tools/setup_environment.py --venv "$(VENV)" --detectron2 "$(DETECTRON2)"

.DEFAULT_GOAL := help
.PHONY: help setup demo compare test doctor lint constraints clean clean-venv check-python
# Two set-ups at once would write into one environment.
.NOTPARALLEL:

help:  ## this text
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	    while IFS='|' read -r target text; do printf '%-14s %s\n' "$$target" "$$text"; done
	@echo
	@echo "Settings:"
	@echo "  PYTHON=...     interpreter for a new environment (default python3.11; 3.10 or newer)"
	@echo "  VENV=...       folder of the environment (default .venv)"
	@echo "  DETECTRON2=... which Detectron2 to install. Left out: whatever imports already is kept, else the wheel"
	@echo "                 sal-detectron2 of the registry (upstream main of April 2024, pure Python) is installed."
	@echo "                   /path/to/checkout         a local checkout, compiled and installed in place"
	@echo "                   git+https://HOST/REPO[@REF]  upstream from git, compiled"
	@echo "                   registry                  the registry's wheel, replacing another one"
	@echo "                 Compiling takes about two minutes and a C++17 compiler; this project needs none of the"
	@echo "                 compiled operators, so a checkout on PYTHONPATH, not installed at all, works as well."
	@echo "  PHOTOS=...     pictures for 'make demo' to score; left out: synthetic streets"
	@echo "  CONFIG_SET=... data sets of 'make compare': synthetic (default) or camvid"
	@echo "  COMPARE_ARGS=. KEY VALUE pairs for its runs, for example COMPARE_ARGS='SOLVER.MAX_ITER 200'"
	@echo "  PYTEST_ARGS=.. more arguments for the tests, for example PYTEST_ARGS='-k metrics'"

check-python:
	@$(SETUP_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "make: '$(SETUP_PYTHON)' is not a Python 3.10 or newer that runs here." >&2; \
	    echo "  Install Python 3.11, or name another interpreter: make setup PYTHON=/path/to/python3" >&2; exit 1; }

setup: check-python  ## make the environment: pinned packages, Detectron2, this project (seconds when nothing changed)
	@$(SETUP) --extras demo

demo: check-python  ## set-up, score PHOTOS, fit a detector and train a GMM on synthetic streets, evaluate
	@$(SETUP) --extras demo
	@$(PY) tools/study.py demo --photos $(PHOTOS)

compare: check-python  ## set-up, then train and evaluate the published systems on CONFIG_SET, in one table
	@$(SETUP) --extras demo
	@$(PY) tools/study.py $(CONFIG_SET) -- $(COMPARE_ARGS)

test: check-python  ## set-up, then the test suite
	@$(SETUP) --extras demo,test
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist loadfile tests $(PYTEST_ARGS)

doctor: check-python  ## what is installed, which Detectron2, CUDA, data sets; what is missing and how to mend it
	@$(SETUP_PYTHON) -m gmm_anomaly.cli doctor

lint: check-python  ## ruff over everything, mypy over the pure packages
	@$(SETUP) --extras test
	@$(PY) -m ruff check .
	@$(PY) -m mypy

constraints: check-python  ## write constraints.txt anew with the newest versions that fit together
	@$(SETUP)
	@{ grep '^#' constraints.txt; printf '%s\n' uv $(TORCH_PAIR) | $(PY) -m uv pip compile --quiet --universal \
	    --python-version 3.10 --all-extras --no-annotate --no-header pyproject.toml -; } > constraints.txt.new \
	    && mv constraints.txt.new constraints.txt || { rm -f constraints.txt.new; exit 1; }

clean:  ## remove caches and build products; the environment, data and results stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find gmm_anomaly tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venv:  ## remove the environment
	rm -rf "$(VENV)"
