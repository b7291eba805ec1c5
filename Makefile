# make lab | make workbook | make test: each sets up .venv by itself, says what it does, and is quick the second time.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

PUBLISHED := $(if $(filter command line,$(origin REPO)),'$(subst ','\'',$(REPO))')

.PHONY: help venv lab workbook test notebooks publish lint clean
help:
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make workbook   execute every notebook on the built-in data; HTML with an index in build/"
	@echo "make test       unit tests, then pytest --nbval notebooks"
	@echo "make notebooks  after editing a notebook's .py: bring the .ipynb in step and execute it"
	@echo "make publish REPO=owner/name   stamp badges and setup cells (REPO= unsets it; without REPO: stamp again)"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove build/ and the tools' caches"

# An environment that stands is brought up to date with its own Python; only a missing or broken one is made anew.
$(READY): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory venv
	@echo "Installing the workbook and its libraries into $(VENV)."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The workbook needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Install one and name it, for example: make PYTHON=python3.11 test"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. On Debian or Ubuntu: sudo apt install python3-venv (or python3.12-venv, say, for that version)"; exit 1; }
	@echo "Setting up $(VENV) for the first time: torch and the other libraries are several GB and take a few minutes."
	@$(PYTHON) -m venv --clear $(VENV)

lab: $(READY)
	@echo "Opening the notebooks in JupyterLab; stop it with Ctrl-C."
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

workbook: $(READY)
	@echo "Executing the notebooks on the built-in data, then writing HTML to build/."
	$(BIN)/python -m coursekit.workbook html --to build

test: $(READY)
	@echo "Unit tests, then every notebook as a regression test."
	$(BIN)/python -m pytest tests --ignore tests/browser --ignore tests/colab
	$(BIN)/python -m pytest --nbval notebooks

notebooks: $(READY)
	$(BIN)/python -m coursekit.workbook execute

publish: $(READY)
	$(BIN)/python -m coursekit.workbook publish $(PUBLISHED)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
