# make demo   set up, fetch a slide, segment it; results in demo/
# make test   set up, then all checks and tests
# make check  set up, then format, lint, types, layers, and the tests that take little time
# make docs   set up, then build the documentation; docs/_build/html/index.html
# make notebooks   each notebooks/*.ipynb from its .py
# make coverage   set up, then all tests; which lines they did not run
# make mutants   set up, then small changes to the code, one by one: do the tests notice? MUTANTS="voting --count 20"
# make test-lowest   the tests with the lowest versions that pyproject.toml allows
# make lock   constraints/known-good.txt from the environment; after tests that passed
# make lowest   constraints/lowest.txt from pyproject.toml
# make licences   the tables of docs/licences.md from the environment
# make audit   known vulnerabilities of constraints/known-good.txt; needs a network
#
# A virtual environment is made in $(VENV) and kept; packages are installed again only when what is required has
# changed. Everything can be overridden: make test PYTHON=python3.12 VENV=/tmp/venv PYTEST_ARGS="-n 8 -k stitch"

PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile
PIP_ARGS ?=
# What the tests are installed with; with constraints-cpu.txt they meet the newest versions that there are.
CONSTRAINTS ?= constraints/known-good.txt

BIN = $(VENV)/bin
# uv and pip-audit, away from what they judge.
TOOLS = .venv-tools
PIP_INSTALL = -m pip install --no-input --disable-pip-version-check $(PIP_ARGS)
INSTALL = $(BIN)/python $(PIP_INSTALL)
# Lines name==version and nothing else: no folder, no build (+cpu), and not the CUDA packages of one build of PyTorch,
# which names the versions that it needs itself.
PINS = sed -nE 's/^([A-Za-z0-9._-]+==[^ +;]+).*/\1/p' | grep -vE '^(nvidia|cuda|triton)'
SLIDE = demo/sample
# What the tests of the napari plugin need where there is no screen (Debian's names).
XVFB = xvfb xauth libdbus-1-3 libegl1 libgl1 libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 \
	libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libxkbcommon-x11-0
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)

.DELETE_ON_ERROR:
.PHONY: help demo test pytest test-lowest lint check docs format notebooks lock lowest licences audit mutants coverage

help:
	@sed -n 's/^# make/make/p' Makefile

# pip is the last thing a virtual environment gets: where it is, the environment is whole.
$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer was found; install one, or pass PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints-cpu.txt | $(BIN)/pip
	$(INSTALL) -c constraints-cpu.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(INSTALL) -c $(CONSTRAINTS) -e '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml constraints-cpu.txt | $(BIN)/pip
	$(INSTALL) -c constraints-cpu.txt -e '.[docs]'
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

# What needs no trained network and no other process.
QUICK = architecture confidence dependencies fusion measurements metrics overlay polygons public_names readme \
	slide_formats slide_view stitch stitch_seams store tiles verify voting weights

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" $(PYTEST_ARGS) $(wildcard $(QUICK:%=tests/test_%.py))

# Where they cannot be installed, the tests that open a window are skipped.
$(VENV)/.installed-xvfb: | $(BIN)/pip
	@if [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v apt-get >/dev/null && ! dpkg -s $(XVFB) >/dev/null 2>&1; then \
		{ $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq $(XVFB) >/dev/null; } \
		|| { echo "make: no Xvfb; tests that open a window are skipped. Install it with: apt-get install $(XVFB)" >&2; exit 0; }; \
	fi && touch $@

test: lint pytest

pytest: $(VENV)/.installed-test $(VENV)/.installed-xvfb
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

# A package beside the environment, so that "make lock" does not find it there.
.venv-with-%/.installed: $(CONSTRAINTS) | $(VENV)/.installed-test
	$(INSTALL) -q -c $(CONSTRAINTS) --upgrade --target $(@D) $*
	@touch $@

# Lines of compiled functions count as not run.
coverage: $(VENV)/.installed-test $(VENV)/.installed-xvfb .venv-with-pytest-cov/.installed
	PYTHONPATH=.venv-with-pytest-cov OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) \
		--cov=nucleipan --cov=napari_nucleipan --cov-report=term-missing:skip-covered

# Takes hours, and is no part of the tests.
mutants: $(VENV)/.installed-test .venv-with-cosmic-ray/.installed
	PYTHONPATH=.venv-with-cosmic-ray OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutation.py $(MUTANTS)

# Without ruff and mypy, whose lowest versions judge otherwise.
test-lowest:
	$(MAKE) pytest VENV=.venv-lowest CONSTRAINTS=constraints/lowest.txt

lock:
	@{ echo "# Written by make lock: all that was installed when the tests last passed,"; \
	$(BIN)/python -c 'import platform as p; print("# with Python", p.python_version(), "on", p.system(), p.machine())'; \
	$(BIN)/python -m pip freeze --exclude-editable | $(PINS); } > constraints/known-good.tmp
	@mv constraints/known-good.tmp constraints/known-good.txt

# uv asks the registry that its own variables name (UV_DEFAULT_INDEX, ...), not pip's.
lowest: $(TOOLS)/.installed
	$(TOOLS)/bin/uv pip compile --quiet --upgrade --resolution lowest-direct --python-version 3.11 --all-extras \
		--no-header --no-annotate -c constraints-cpu.txt pyproject.toml -o $(TOOLS)/lowest.txt
	@{ echo "# Written by make lowest: the lowest versions that pyproject.toml allows (of PyTorch, that of"; \
	echo "# constraints-cpu.txt), and the newest of what these ask for."; \
	$(PINS) < $(TOOLS)/lowest.txt; } > constraints/lowest.txt

licences: $(VENV)/.installed-test
	$(BIN)/python docs/licences.py

# Strict: a package that the service does not know is not taken for a good one.
audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip -r constraints/known-good.txt

$(TOOLS)/.installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(PIP_INSTALL) uv pip-audit
	@touch $@
