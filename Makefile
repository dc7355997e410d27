# `make demo` and `make test` set up what they need; a second call starts at once.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

.DEFAULT_GOAL := help
.PHONY: help demo test browser azurite lint docs pages constraints clean

help: ## list what make can do
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1: /' | column -t -s:

demo: .venv/label ## set up, label real photographs with the bundled model, show the rows
	$(BIN)/fer-ray label --all --output demo
	$(BIN)/duckdb -init demo/views/duckdb.sql -c "SELECT parse_filename(image_uri) AS image, bbox_x, bbox_y, emotion, round(confidence, 2) AS confidence FROM faces_latest"

test: .venv/ready browser azurite ## set up and pass the tests
	$(BIN)/python -m pytest

# Some tests look at pages with a browser; where none can be installed, they are skipped.
browser:
	@command -v chromium google-chrome >/dev/null || ($(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends chromium) \
	  || echo "no browser can be installed here: the tests that need one will be skipped"

# The tests of az:// need Microsoft's emulator of it; where npm cannot install it, they are skipped.
azurite:
	@command -v azurite-blob >/dev/null || [ -d build/azurite/node_modules/azurite ] \
	  || npm install --silent --no-audit --no-fund --prefix build/azurite azurite@3.37.0 \
	  || echo "Azurite cannot be installed here: the tests of az:// will be skipped"

lint: .venv/ready ## ruff, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready ## build the documentation as a site in build/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pages: .venv/ready ## write the generated pages anew
	$(BIN)/python tools/tables_page.py > docs/tables.md.new && mv docs/tables.md.new docs/tables.md

constraints: ## pin what an unconstrained installation takes today
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install --quiet --disable-pip-version-check -e '.[train,demo,test,docs]'
	build/pins/bin/python -m pip freeze --exclude-editable > constraints.txt

# uv installs in a fifth of pip's time; pip has the settings of the machine, such as a registry of its own.
INSTALL = $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]' \
  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'

# What labels is enough for the demo; everything else is six times as large and comes on top.
.venv/label: EXTRAS = demo
.venv/label: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv || ($(SUDO) apt-get update && $(SUDO) apt-get install -y python3-venv && $(PYTHON) -m venv --clear .venv)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(INSTALL)
	touch $@

.venv/ready: EXTRAS = train,demo,test,docs
.venv/ready: .venv/label
	$(INSTALL)
	touch $@

clean: ## remove what make made
	rm -rf .venv build demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
