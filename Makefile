# Everything a newcomer needs: `make demo` and `make test`. PYTHON=python3.13 picks another Python.

PYTHON ?= python3
VENV   ?= .venv
# Two workers suit two cores and fit into 16 GB.
WORKERS ?= 2
# Further arguments for pytest: make test ARGS="tests/diffusion -x"
ARGS   ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# PyTorch is the reference of tests/parity and nothing else. The default build on Linux brings
# gigabytes of CUDA, so the CPU build is asked for by name: from the package index that pip is set up
# with, then from PyTorch's own. PARITY says what happens where neither has it:
#   auto      the parity tests are skipped, and say so
#   required  the default build is installed instead, and a parity test that is skipped all the
#             same fails (what .ci/run asks for)
#   skip      PyTorch is not asked for at all
PARITY ?= auto
TORCH_VERSION := 2.13.0
TORCH_INDEX   := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -s),Darwin)
TORCH_CPU := torch==$(TORCH_VERSION)
else
TORCH_CPU := torch==$(TORCH_VERSION)+cpu
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format clean

help:
	@echo 'make demo     distil a Chinese adapter into the embedded tiny Stable Diffusion (10 minutes)'
	@echo 'make test     the test suite; ARGS="tests/diffusion -x" goes to pytest'
	@echo 'make lint     ruff, the import contract, shellcheck;  make format applies what ruff can'
	@echo 'make clean    removes the environment and caches, keeps runs/'

# Stamp files: the environment is made anew when another Python is asked for, and the package is
# installed again when its dependencies change.
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
	    echo 'PyTorch not asked for: the parity tests will be skipped.'; \
	elif $(PIP) install --quiet '$(TORCH_CPU)' 2>/dev/null \
	    || $(PIP) install --quiet --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH_CPU)' 2>/dev/null; then \
	    $(PIP) install --quiet --editable '.[parity]'; \
	elif [ '$(PARITY)' = required ]; then \
	    echo 'No CPU build of PyTorch to be had: installing the default build, which is large.'; \
	    $(PIP) install --quiet 'torch==$(TORCH_VERSION)' --editable '.[parity]'; \
	else \
	    echo 'No CPU build of PyTorch $(TORCH_VERSION) to be had for Python $(PYTHON_VERSION):' \
	        'the parity tests will be skipped (PARITY=required installs the default build).'; \
	fi
	@touch $@

install: $(RUN)

# Trains only where the last time did not finish; what follows from the adapter is made anew.
DEMO := runs/tiny_zh
demo: $(RUN)
	$(BIN)/pea-jax train --config configs/tiny_zh.py --workdir $(DEMO)
	$(BIN)/pea-jax evaluate --workdir $(DEMO)
	rm -rf $(DEMO)/samples $(DEMO)/export
	$(BIN)/pea-jax sample --workdir $(DEMO) --output $(DEMO)/samples \
	    --prompt 夜空中有一个黄色的大星星 --prompt 雪地上有一个红色的大灯笼
	$(BIN)/pea-jax export --workdir $(DEMO)

test: $(PARITY_STAMP)
	PARITY=$(PARITY) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

# Full-size models; one process, since one of them fills a good part of 16 GB.
test-slow: $(PARITY_STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

# shellcheck is the operating system's (apt install shellcheck, brew install shellcheck): what PyPI has
# of that name downloads a program when it is installed.
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
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
