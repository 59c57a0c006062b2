# `make demo` and `make test` work from a bare clone: the first run sets up .venv with pinned packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup demo test lint clean

setup: $(STAMP)

$(STAMP): requirements.lock setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed for the pinned packages; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	touch $@

# A clip the project makes itself, and what the shipped detector finds in it.
demo: $(STAMP)
	mkdir -p out
	$(BIN)/python tools/make_street.py --output out/street.mp4 --seed 8 --shift clear --frames 150 --size 640x360 --overwrite
	$(BIN)/python tools/stream.py --source out/street.mp4 --output out/demo.mp4 --jsonl out/demo.jsonl --overwrite

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
