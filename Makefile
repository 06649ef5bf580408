# Two commands: `make run` measures every paper at the quick tier, `make test` runs everything CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: run test lint docs bench clean

run: $(STAMP)-run
	$(BIN)/etude run

test: $(STAMP)-test lint docs
	$(BIN)/python -m pytest -n $${ETUDE_TEST_WORKERS:-2} --dist loadfile

lint: $(STAMP)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)-test
	$(BIN)/python -m sphinx -q --keep-going -b html docs docs/_build/html

bench: $(STAMP)-test
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/etude bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP)-run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[tables,images]'
	touch $@

$(STAMP)-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[tables,images,hf,cluster,postgres,web,docs,test]'
	touch $@ $(STAMP)-run

clean:
	rm -rf $(VENV) docs/_build etude-report etude.sqlite
