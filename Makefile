# Everything happens in a private environment inside this folder: a newcomer needs Python >= 3.10, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow test-versions lint types clean

demo: $(INSTALLED)  ## make the data, pretrain on stills, inflate, train on videos, test, draw (about five minutes)
	$(BIN)/sparsevideo quickstart --out runs/quickstart

test: $(INSTALLED)  ## the whole suite but what is marked slow, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)  ## what is marked slow: the wheel in a clean environment, long runs
	$(BIN)/python -m pytest -m slow

# VERSIONS="-k newest" runs one end alone.
test-versions: $(INSTALLED)  ## the suite with the oldest and the newest versions that are admitted; gigabytes
	$(BIN)/python -m pytest -m versions -s tests/test_versions.py $(VERSIONS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('sparsevideo needs Python >= 3.10; set PYTHON=' if sys.version_info < (3, 10) else 0)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
