# Each target makes the virtual environment it needs: `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WORKERS ?= 2

.PHONY: demo demo-trajectory demo-conditional test test-exhaustive lint docs clean

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

demo-trajectory: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo_trajectory.sh

demo-conditional: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo_conditional.sh

# The scripts' tests start processes of their own; one torch thread per worker keeps two cores busy and no busier.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not exhaustive"

test-exhaustive: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# Warnings, such as a link that leads nowhere, are errors (strict in mkdocs.yml).
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(INSTALLED) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
