# Everything runs inside .venv, which `make setup` fills and keeps up to date.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# A new top-level package has to be installed before `genpol` finds it.
PACKAGES := $(wildcard genpol/__init__.py robots/__init__.py diffusion/__init__.py offline/__init__.py)

.PHONY: setup demo test test-slow lint clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

# torch goes first and alone: one of its builds may already be at hand (CPU, or a CUDA version),
# and is then kept as it is. Last come libraries whose own requirements would undo that.
$(STAMP): pyproject.toml constraints.txt requirements-nodeps.txt $(PACKAGES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet -e ".[wandb,sim,data,octo,serve,reward-server,dev]" -c constraints.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-nodeps.txt
	touch $@

demo: setup
	$(BIN)/genpol demo --output runs/demo

# One torch thread per worker (tests/conftest.py); a file's tests share a worker and its fixtures.
test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
