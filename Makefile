# Everything happens in a private environment inside this folder. It needs Python >= 3.10, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.docs-installed
WEB_INSTALLED := .venv/.web-installed

.PHONY: demo test test-slow test-versions web lint types docs clean

demo: $(INSTALLED)  ## the quick start: data, video training from released image weights, test (a few minutes)
	$(BIN)/sparsevideo quickstart --out runs/quickstart

test: $(INSTALLED)  ## the suite without the tests that are marked slow, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)  ## the tests that are marked slow: the wheel in a clean environment, long runs
	$(BIN)/python -m pytest -m slow

# VERSIONS="-k newest" runs the newest versions alone.
test-versions: $(INSTALLED)  ## the suite with the lowest and with the newest versions; downloads gigabytes
	$(BIN)/python -m pytest -m versions -s tests/test_versions.py $(VERSIONS)

web: $(WEB_INSTALLED)  ## what the tests of the web page need, which else are skipped; Chromium comes from the system

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(DOCS_INSTALLED)  ## the website, in build/site/index.html
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv build dist *.egg-info

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('sparsevideo needs Python >= 3.10; set PYTHON=' if sys.version_info < (3, 10) else 0)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(WEB_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[web]" playwright
	touch $@
