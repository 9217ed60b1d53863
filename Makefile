# Everything a fresh clone can do. Each target first makes .venv, once, and again when a pinned file changes.
# On another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
# Bytecode of what is used is compiled when it is first imported; most of what is installed never is.
INSTALL := $(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: venv test lint types demo clean
.DELETE_ON_ERROR:

venv: .venv/installed

# PyTorch goes first and alone: a range in another package must not choose its build.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cuao3d needs Python 3.11 or newer, this is " \
		+ sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	@echo "Installing into .venv (once, some minutes)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) torch
	@$(INSTALL) -e '.[demo,dev]'
	@touch $@

# Two processes of one thread each: more threads only get in each other's way on data this small. Each keeps to its
# half of the files as long as it can, for what a file makes once is then made once.
test: venv
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: venv
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: venv
	@$(BIN)/mypy

demo: venv
	@$(BIN)/cuao3d demo --out demo-out

# What was made can be made again. Stores, runs and .venv stay.
clean:
	@rm -rf demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests scripts examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
