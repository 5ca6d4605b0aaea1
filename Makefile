# make demo    the whole story on a small real base, from nothing (make demo-quick: in 3 minutes)
# make test    all tests
# make lint    format, ruff, mypy, import contract
# make venv    the environment alone (the others make it when it is missing)
#
# PYTHON=python3.12 picks the interpreter that makes .venv. BIN=FOLDER uses the environment whose
# executables lie in FOLDER, as it is, and makes none.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

ifdef BIN
ENVIRONMENT :=
else
BIN := $(VENV)/bin
ENVIRONMENT := $(STAMP)
endif

PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-quick test lint venv
.DELETE_ON_ERROR:

demo: $(ENVIRONMENT)
	@$(BIN)/python -m demo.run

demo-quick: $(ENVIRONMENT)
	@$(BIN)/python -m demo.run --quick

# One thread each in parallel: two busy BLAS pools on the same cores are slower than none.
test: $(ENVIRONMENT)
	@echo "tests: everything on tiny random models"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not model"
	@echo "tests: the real smollm2-135m, one after another"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m model

lint: $(ENVIRONMENT)
	@echo "lint: ruff format"
	@$(BIN)/ruff format --check .
	@echo "lint: ruff check"
	@$(BIN)/ruff check .
	@echo "lint: mypy --strict"
	@$(BIN)/mypy
	@echo "lint: import contract"
	@$(BIN)/lint-imports

venv: $(ENVIRONMENT)

# torch first and alone: it is the largest download, and the rest then takes what is there.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	    v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, {v[0]}.{v[1]} found: make PYTHON=python3.12 ...")'
	@echo "environment: $(VENV) from $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "environment: installing torch (the largest download, some minutes)"
	@$(PIP_INSTALL) torch
	@echo "environment: installing the rest"
	@$(PIP_INSTALL) -e '.[dev,quant,serve]'
	@touch $@
	@echo "environment: ready"
