# Two commands matter: `make quickstart` and `make test`. Each makes the environment it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-slow check format clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; run make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making the environment in $(VENV) (about 2.3 GB; once)…"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[data,train,dev]"
	@touch $@

quickstart: $(READY)
	@$(BIN)/mnf run recipes/quickstart.yaml

test: $(READY)
	@$(BIN)/python -m pytest -q -m "not slow and not gpu"

test-slow: $(READY)
	@$(BIN)/python -m pytest -q -m slow

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf runs
