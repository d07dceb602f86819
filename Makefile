# Everything a newcomer needs: make demo, make test. Both set up .venv from pinned, hashed packages first.
PYTHON ?= python3
BIN := .venv/bin


.PHONY: setup demo test docs lock clean
.DEFAULT_GOAL := demo

setup: .venv/ready

demo: .venv/ready
	$(BIN)/rarebox demo

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest -n 2 --dist loadfile

.venv/ready: requirements.lock bootstrap.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rarebox needs Python 3.11 or later; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.lock
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	touch $@

# The pages that are made from the code.
docs: .venv/ready
	$(BIN)/python -c 'from rarebox import settings_text; print(settings_text.reference(), end="")' > docs/settings.md

# Pin anew: versions and hashes, no address of an index.
lock:
	$(BIN)/uv pip compile --universal --python-version 3.11 --group dev --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url pyproject.toml -o requirements.lock
	echo uv | $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url - -o bootstrap.lock

clean:
	rm -rf .venv demo-out
