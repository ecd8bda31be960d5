# The commands of the project; `make` lists them. Each runs in .venv, an environment of its own that is made from
# constraints.txt and made again whenever the project's requirements, the interpreter or the folder change.

# The first Python >= 3.11 that can make virtual environments; `make test PYTHON=/path/to/python` chooses another.
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif

BIN := .venv/bin
KEY := $(shell { pwd; $(PYTHON) -VV; cat pyproject.toml constraints.txt; } 2>&1 | cksum | cut -d ' ' -f 1)
BASE := .venv/installed-$(KEY)
DEV := $(BASE)-dev
DOCS := $(BASE)-docs
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation -c constraints.txt

WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations=10

.PHONY: help demo test test-slow lint bench docs clean

help:
	@echo 'make demo       train PEARL on point-robot, adapt it to unseen goals and write a report (10 minutes)'
	@echo 'make test       the fast tests'
	@echo 'make test-slow  the slow ones'
	@echo 'make lint       ruff and mypy'
	@echo 'make bench      every benchmark, one thread'
	@echo 'make docs       the documentation, in docs/_build/html'
	@echo 'make clean      remove everything made here, except runs/'

demo: $(BASE)
	$(BIN)/python examples/demo.py

test: $(BASE)
	$(PYTEST) -m 'not slow'

test-slow: $(BASE)
	$(PYTEST) -m slow

# mypy cannot follow the folder mapping of an editable install, so it is shown the package as it installs.
lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typing && mkdir -p build/typing/bayesmeta
	for part in bayesmeta/* models inference configs; do ln -s "$(CURDIR)/$$part" build/typing/bayesmeta/; done
	cd build/typing && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p bayesmeta

# Files whose names begin with an underscore are shared helpers.
bench: $(BASE)
	for file in benchmarks/[a-z]*.py; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

docs: $(DOCS)
	rm -rf docs/_build docs/api
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

clean:
	rm -rf .venv build dist docs/_build docs/api .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE):
	@test -n '$(PYTHON)' || { echo 'bayesmeta needs Python 3.11 or newer with its venv module, and none was found:' \
		'install one, or name it with PYTHON=/path/to/python'; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt pip setuptools
	$(INSTALL) -e '.[test]'
	touch $@

$(DEV): $(BASE)
	$(INSTALL) -e '.[test,dev]'
	touch $@

$(DOCS): $(BASE)
	$(INSTALL) -e '.[test,docs]'
	touch $@
