# Needs make, Python 3.11 or newer and a package index; nothing else.
#
#   make demo       serve requests that share documents, compare the strategies
#   make test       the tests                make test-slow  the long sweeps
#   make test-as-users  the tests, all compiled as XLA does for users
#   make test-page  the server's page in a Chromium of this machine
#   make test-kernels     every kernel at all widths and dtypes
#   make aot        compile every kernel for TPUs and GPUs that are not here
#   make machine-code  instructions of the GPU kernels, against the kept counts
#   make device     bits, errors and times on the device at hand, as one JSON
#   make lint       ruff and pyright         make format     let ruff format
#   make parity     logits again from transformers, compared with the golden
#                   files, and ours with both
#   make wheel      dist/*.whl and dist/*.tar.gz
#   make lock       the versions in use now, for Bazel
#
# PYTHON=... chooses the interpreter, VENV=... the folder of the environment.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: demo test test-as-users test-slow test-page test-kernels aot machine-code device lint format parity wheel lock clean

VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo_out
# Compiled programs are kept per process: one file of tests stays with one.
TEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# The first of these that starts and is new enough (a name on the PATH may be a
# shim that does not start).
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(CANDIDATES); do \
  if $$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then echo $$p; break; fi; done)

demo: $(VENV)/.run
	$(BIN)/python -m sparse_prefix_jax demo --out=$(OUT)

test: $(VENV)/.test
	$(PYTEST)

# The usual run compiles what does not look for lost bits in half the time.
test-as-users: $(VENV)/.test
	$(PYTEST) --as-users

test-slow: $(VENV)/.test
	$(PYTEST) -m slow

test-page: $(VENV)/.page
	$(BIN)/python -m pytest -m browser tests/serving/server/page_test.py

# One class stays with one process here: a file has hundreds of these tests.
test-kernels: $(VENV)/.test
	$(PYTEST) --dist loadscope -m slow_kernels tests/kernels

aot: .venv-aot/.aot
	.venv-aot/bin/python -m benchmarks.aot --platforms=tpu,cuda $(AOT_FLAGS)

machine-code: .venv-aot/.aot
	.venv-aot/bin/python -m benchmarks.machine_code --check

# With the Python that the device's packages are installed in; on a CPU, with
# ours, and tiny.
DEVICE ?= gpu
DEVICE_PYTHON ?= $(if $(filter cpu,$(DEVICE)),$(BIN)/python,python3)
DEVICE_OUT ?= device.json

device: $(if $(filter cpu,$(DEVICE)),$(VENV)/.test)
	$(DEVICE_PYTHON) -m benchmarks.device --device=$(DEVICE) \
	  --output=$(DEVICE_OUT)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: .venv-parity/.parity
	.venv-parity/bin/python -m tests.models.make_golden --check
	.venv-parity/bin/python -m pytest tests/models/checkpoint_test.py
	.venv-parity/bin/python -m tests.models.compare_fp8
	.venv-parity/bin/python -m tests.models.compare_mutations

# From a source distribution, so that both are tried.
wheel: $(VENV)/.test
	$(BIN)/python -m build --outdir dist .

lock: .venv-lock/.made
	.venv-lock/bin/python $(PIP_INSTALL) -e '.[test]'
	@{ echo "# The versions that the tests passed with on Python 3.11, for" \
	    "Bazel; made by"; \
	  echo "# \`make lock\`. pip installs read the ranges of" \
	    "pyproject.toml instead."; \
	  .venv-lock/bin/python -m pip freeze --all --exclude-editable \
	    | grep -v '^pip=='; } >requirements_lock.txt

clean:
	rm -rf build dist demo_out *.egg-info

# Environments: a file in each says that it holds what pyproject.toml asks for.
%/.made:
	@test -n '$(PYTHON)' && $(PYTHON) -c '$(NEW_ENOUGH)' >/dev/null 2>&1 || { \
	  echo "make: PYTHON is '$(PYTHON)', and Python 3.11 or newer is needed:" \
	    "install one, or name it with PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $*
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml setup.py
	@echo "Installing the package and what the demo needs (a minute or two)"
	$(BIN)/python $(PIP_INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml setup.py
	@echo "Installing the package and what its tests need (a minute or two)"
	$(BIN)/python $(PIP_INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.page: $(VENV)/.test
	$(BIN)/python $(PIP_INSTALL) -e '.[browser]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $@

.venv-aot/.aot: .venv-aot/.made pyproject.toml setup.py
	@echo "Installing the compilers for TPU and CUDA (some GB)"
	.venv-aot/bin/python $(PIP_INSTALL) -e '.[cuda12,disassembler,tpu]'
	@touch $@

.venv-parity/.parity: .venv-parity/.made pyproject.toml setup.py
	@echo "Installing PyTorch and transformers (several minutes)"
	.venv-parity/bin/python $(PIP_INSTALL) -e '.[parity,test]'
	@touch $@
