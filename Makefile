PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

demo: .venv/installed  ## rewrite an example, then train the rewritten model on real digits
	$(BIN)/dni-fx rewrite examples/mlp.py --cuts 2 --classes 10 -o build/mlp --force
	$(BIN)/python examples/mlp.py

test: lint  ## lint, types, the quick tests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow"

test-all: lint  ## the same with the slow tests: what CI runs
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p dni_fx -p dni_fx.passes

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
