# make demo   set up, fetch a slide, segment it; results in demo/
# make test   set up, then all checks and tests
# make docs   set up, then build the documentation; docs/_build/html/index.html
# make notebooks   each notebooks/*.ipynb from its .py
# make mutants   set up, then small changes to the code, one by one: do the tests notice? MUTANTS="voting --count 20"
#
# A virtual environment is made in $(VENV) and kept; packages are installed again only when what is required has
# changed. Everything can be overridden: make test PYTHON=python3.12 VENV=/tmp/venv PYTEST_ARGS="-n 8 -k stitch"

PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile
PIP_ARGS ?=

BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --no-input --disable-pip-version-check $(PIP_ARGS) -c constraints-cpu.txt
SLIDE = demo/sample
# What the tests of the napari plugin need where there is no screen (Debian's names).
XVFB = xvfb xauth libdbus-1-3 libegl1 libgl1 libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 \
	libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libxkbcommon-x11-0
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)

.DELETE_ON_ERROR:
.PHONY: help demo test check docs format notebooks mutants

help:
	@sed -n 's/^# make/make/p' Makefile

# pip is the last thing a virtual environment gets: where it is, the environment is whole.
$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer was found; install one, or pass PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints-cpu.txt | $(BIN)/pip
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints-cpu.txt | $(BIN)/pip
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml constraints-cpu.txt | $(BIN)/pip
	$(INSTALL) -e '.[docs]'
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	@mkdir -p demo
	@test -f $(SLIDE).svs || $(BIN)/nucleipan sample $(SLIDE).svs
	$(BIN)/nucleipan segment $(SLIDE).svs --out demo --overwrite --overlay --export geojson
	@echo
	@echo "slide          $(SLIDE).svs"
	@echo "picture        $(SLIDE).overlay.png"
	@echo "for QuPath     $(SLIDE).geojson.gz"
	@echo "store          $(SLIDE).ome.zarr"
	@echo "table          $(SLIDE).ome.zarr/nuclei.parquet"

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Where they cannot be installed, the tests that open a window are skipped.
$(VENV)/.installed-xvfb: | $(BIN)/pip
	@if [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v apt-get >/dev/null && ! dpkg -s $(XVFB) >/dev/null 2>&1; then \
		{ $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq $(XVFB) >/dev/null; } \
		|| { echo "make: no Xvfb; tests that open a window are skipped. Install it with: apt-get install $(XVFB)" >&2; exit 0; }; \
	fi && touch $@

test: check $(VENV)/.installed-xvfb
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build/html
	@echo "documentation  docs/_build/html/index.html"

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --update keeps what identifies a cell, so that only what has changed differs.
notebooks: $(VENV)/.installed-test
	$(BIN)/jupytext --quiet --update --set-kernel python3 --to ipynb notebooks/*.py

# Takes hours, and is no part of the tests.
mutants: $(VENV)/.installed-test
	$(INSTALL) -q cosmic-ray
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutation.py $(MUTANTS)
