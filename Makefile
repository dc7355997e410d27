# `make demo` and `make test` set up what they need; a second call starts at once.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

.PHONY: demo test browser lint docs clean

demo: .venv/ready
	$(BIN)/python jobs/label.py --all --output demo | tee demo.log
	@$(BIN)/python -c "import duckdb; print(duckdb.sql(\"SELECT parse_filename(image_uri) AS image, bbox_x AS x, bbox_y AS y, bbox_width AS width, bbox_height AS height, emotion, round(confidence, 3) AS confidence FROM 'demo/faces/*/*.parquet' QUALIFY rank() OVER (ORDER BY labeled_at DESC) <= 50 ORDER BY labeled_at DESC, image LIMIT 12\"))"
	@grep '^picture: ' demo.log; rm -f demo.log

test: .venv/ready browser
	$(BIN)/python -m pytest

# One test looks at the report of a run with a browser; where none can be installed, it is skipped.
browser:
	@command -v chromium google-chrome >/dev/null || ($(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends chromium) \
	  || echo "no browser can be installed here: the test that needs one will be skipped"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready
	$(BIN)/python tools/tables_page.py > docs/tables.md.new && mv docs/tables.md.new docs/tables.md

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv || ($(SUDO) apt-get update && $(SUDO) apt-get install -y python3-venv && $(PYTHON) -m venv --clear .venv)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	touch $@

clean:
	rm -rf .venv demo .mypy_cache .pytest_cache .ruff_cache
