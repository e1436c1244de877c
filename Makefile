PYTHON ?= python3
BIN := .venv/bin

TORCH ?= $(shell sed -n s/^torch==//p constraints.txt)

.PHONY: demo test test-all test-with lint docs clean

demo: .venv/demo  ## train a deep net by backprop, with checkpointing and cut, on real digits
	mkdir -p build
	$(BIN)/dni-fx compare examples/deep.py --data examples/deep.py:batches --metric examples/deep.py:error \
	    --cuts 4 --steps 500 --plot build/demo.png
	@echo "Next, on a model and data of your own: $(BIN)/dni-fx compare model.py --data model.py:batches"

test: lint  ## lint, types, the quick tests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow"

test-all: lint  ## the same with the slow tests: what CI runs
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-with:  ## the quick tests with another Python or torch: make test-with PYTHON=python3.13 TORCH=2.10.0
	$(PYTHON) -m venv --clear build/with
	grep -v '^torch==' constraints.txt > build/constraints.txt
	build/with/bin/pip install --quiet -c build/constraints.txt torch==$(TORCH) -e ".[dev]"
	build/with/bin/python -m pytest --numprocesses auto --dist worksteal -m "not slow"

docs: .venv/installed  ## the site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p dni_fx -p dni_fx.passes

.venv/demo: pyproject.toml constraints.txt  ## without the tools of development
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[examples,plots]"
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
