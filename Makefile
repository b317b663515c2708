# Start with `make demo` and `make test`. PYTHON=python3.13 selects another Python.

PYTHON ?= python3
VENV   ?= .venv
# Two workers need two cores and 16 GB.
WORKERS ?= 2
# Arguments for pytest: make test ARGS="tests/diffusion -x"
ARGS   ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Only tests/parity needs PyTorch. The default build for Linux contains gigabytes of CUDA, so the CPU
# build is requested by name: from pip's configured index, then from PyTorch's own index. PARITY
# decides what happens if neither has it:
#   auto      the parity tests are skipped, with a message
#   required  the default build is installed instead, and a skipped parity test fails (for .ci/run)
#   skip      PyTorch is not installed
PARITY ?= auto
TORCH_VERSION := 2.13.0
TORCH_INDEX   := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -s),Darwin)
TORCH_CPU := torch==$(TORCH_VERSION)
else
TORCH_CPU := torch==$(TORCH_VERSION)+cpu
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-wheel test-beam test-lowest lint format clean

help:
	@echo 'make demo         distil a Chinese adapter into the embedded tiny Stable Diffusion (10 minutes)'
	@echo 'make test         the test suite; ARGS="tests/diffusion -x" is passed to pytest'
	@echo 'make test-slow    full-size models'
	@echo 'make test-wheel   build, install and run the wheel (downloads the dependencies)'
	@echo 'make test-beam    the tests of Apache Beam, in .venv-beam'
	@echo 'make test-lowest  the test suite with the oldest supported dependencies, in .venv-lowest'
	@echo 'make lint         ruff, import contracts, shellcheck;  make format applies the fixes of ruff'
	@echo 'make clean        remove environments and caches, keep runs/'

# Stamp files: another PYTHON creates the environment again, and a change of the dependencies installs
# the package again.
MADE   := $(VENV)/.made-with-python-$(PYTHON_VERSION)
RUN    := $(VENV)/.installed
TEST   := $(VENV)/.installed-test
PARITY_STAMP := $(VENV)/.parity-$(PARITY)

$(MADE):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or \
	    sys.exit("pea-jax needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUN): $(MADE) setup.py
	$(PIP) install --quiet --editable .
	@touch $@

$(TEST): $(RUN)
	$(PIP) install --quiet --editable '.[test]'
	@touch $@

$(PARITY_STAMP): $(TEST)
	@set -e; \
	case '$(PARITY)' in auto|required|skip) ;; *) \
	    echo 'PARITY is auto, required or skip, not $(PARITY)' >&2; exit 2;; esac; \
	if [ '$(PARITY)' = skip ]; then \
	    echo 'PARITY=skip: PyTorch is not installed, and the parity tests are skipped.'; \
	elif $(PIP) install --quiet '$(TORCH_CPU)' 2>/dev/null \
	    || $(PIP) install --quiet --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH_CPU)' 2>/dev/null; then \
	    $(PIP) install --quiet --editable '.[parity]'; \
	elif [ '$(PARITY)' = required ]; then \
	    echo 'No CPU build of PyTorch found: installing the default build, which is large.'; \
	    $(PIP) install --quiet 'torch==$(TORCH_VERSION)' --editable '.[parity]'; \
	else \
	    echo 'No CPU build of PyTorch $(TORCH_VERSION) found for Python $(PYTHON_VERSION):' \
	        'the parity tests are skipped (PARITY=required installs the default build).'; \
	fi
	@touch $@

install: $(RUN)

# An unfinished run is continued. Evaluation, samples and export are made again.
DEMO := runs/tiny_zh
demo: $(RUN)
	$(BIN)/pea-jax train --config tiny_zh --workdir $(DEMO)
	$(BIN)/pea-jax evaluate --workdir $(DEMO)
	rm -rf $(DEMO)/samples $(DEMO)/export
	$(BIN)/pea-jax sample --workdir $(DEMO) --output $(DEMO)/samples \
	    --prompt 夜空中有一个黄色的大星星 --prompt 雪地上有一个红色的大灯笼
	$(BIN)/pea-jax export --workdir $(DEMO)

test: $(PARITY_STAMP)
	PARITY=$(PARITY) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

# One process: a full-size model needs most of 16 GB.
test-slow: $(PARITY_STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-wheel: $(TEST)
	$(BIN)/python -m pytest -m wheel tests/test_wheel.py $(ARGS)

# Apache Beam needs protobuf 6 and an older sentencepiece, and about 60 packages.
BEAM       := .venv-beam
BEAM_STAMP := $(BEAM)/.installed-with-python-$(PYTHON_VERSION)

$(BEAM_STAMP): setup.py
	$(PYTHON) -m venv --clear $(BEAM)
	$(BEAM)/bin/python -m pip install --quiet --editable '.[test,beam]'
	@touch $@

test-beam: $(BEAM_STAMP)
	$(BEAM)/bin/python -m pytest -m beam tests/data $(ARGS)

# The lower bounds of setup.py, on the oldest Python. Always from nothing, as bounds of other packages
# change over time.
LOWEST        := .venv-lowest
LOWEST_PYTHON ?= python3.11

test-lowest:
	$(LOWEST_PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	    --editable '.[test]'
	$(LOWEST)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

# shellcheck comes from the operating system (apt install shellcheck, brew install shellcheck): the
# package of this name on PyPI downloads a program during its installation.
SHELL_SCRIPTS := launch/*.sh launch/gke/*.sh launch/*.sbatch .ci/run

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	@for script in $(SHELL_SCRIPTS); do bash -n $$script || exit; done
	@if command -v shellcheck >/dev/null; then \
	    echo shellcheck $(SHELL_SCRIPTS); shellcheck $(SHELL_SCRIPTS); \
	else \
	    echo 'shellcheck is not installed: the shell scripts were only parsed.'; \
	fi

format: $(TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(BEAM) $(LOWEST) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
