PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/installed  ## rewrite an example, then train the rewritten model on real digits
	$(BIN)/dni-fx rewrite examples/mlp.py --cuts auto --classes 10 -o build/mlp --force
	$(BIN)/python examples/mlp.py

test: .venv/installed  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p dni_fx -p dni_fx.passes
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
