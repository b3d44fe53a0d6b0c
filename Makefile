# `make` lists the targets. Every target makes the environment it needs.

VENV ?= .venv
EXTRAS ?= dev
CONSTRAINTS ?= constraints.txt
PYTHON ?=
WORKDIR ?=
SEED ?=
BUDGET ?=
ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadfile
# Of one release: torchvision's names the torch it is built for.
PEERS ?= torch==2.14.1 torchvision==0.29.1 open_clip_torch==3.3.0

PY = $(VENV)/bin/python
READY = $(VENV)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv quickstart check test test-newest lint format-check types \
  unit format docs evidence bench bench-train plan plan-here plan-test pod-test \
  crash-test soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s%s\n", $$1, $$2 }' \
	  $(firstword $(MAKEFILE_LIST))
	@echo "variables: PYTHON VENV EXTRAS CONSTRAINTS WORKDIR SEED BUDGET ARGS PYTEST_ARGS PEERS"

venv: $(READY) ## make .venv with everything the other targets need

$(READY): setup.py $(CONSTRAINTS)
	@PYTHON='$(PYTHON)' sh .ci/venv $(VENV) $(EXTRAS) $(CONSTRAINTS)

quickstart: $(READY) ## train, index, search and re-rank on small data (SEED, BUDGET, WORKDIR)
	$(PY) -m launch.quickstart \
	  --workdir=$(or $(WORKDIR),runs/quickstart) \
	  $(if $(SEED),--seed=$(SEED)) $(if $(BUDGET),--budget=$(BUDGET)) $(ARGS)

check: export PYTEST_ADDOPTS = -m "not slow and not own"
check: $(READY) ## lint, format, types and the quick tests: before a commit
	$(call all-of,$@)

test: $(READY) ## all checks: lint, format, types, tests; on the oldest versions
	$(call all-of,$@)

# Every check runs, whichever of them fails; the last line says which did.
define all-of
+@failed=; \
for check in lint format-check types unit; do \
  $(MAKE) --no-print-directory $$check || failed="$$failed $$check"; \
done; \
if [ -n "$$failed" ]; then echo "make $(1): failed:$$failed"; exit 1; fi; \
echo "make $(1): lint, format, types and tests are clean"
endef

# Types as 3.12 has them: numpy's newest stubs do not parse as 3.11.
test-newest: ## the same checks on the newest versions, in .venv-newest
	@$(MAKE) --no-print-directory VENV=.venv-newest \
	  CONSTRAINTS=constraints-newest.txt MYPY_ARGS=--python-version=3.12 test

lint: $(READY) ## ruff check
	$(VENV)/bin/ruff check .

format-check: $(READY) ## ruff format, without writing
	$(VENV)/bin/ruff format --check .

types: $(READY) ## mypy
	$(VENV)/bin/mypy $(MYPY_ARGS)

unit: $(READY) ## pytest (PYTEST_ARGS="tests/train/test_losses.py -k ring")
	$(PY) -m pytest $(PYTEST_ARGS)

format: $(READY) ## write the format, and the fixes of ruff that are safe
	$(VENV)/bin/ruff check --fix --exit-zero --quiet .
	$(VENV)/bin/ruff format .

docs: $(READY) ## API pages from the docstrings, in build/docs
	$(PY) -W 'ignore:Error parsing type annotation' -m pdoc --docformat google \
	  --output-directory build/docs \
	  fs_jax '!fs_jax.evaluate.speed.baseline_open_clip'

evidence: $(READY) ## the measurements behind the README's numbers (ARGS)
	$(PY) -m launch.evidence $(ARGS)

bench: $(READY) ## benchmarks (ARGS)
	$(PY) -m launch.bench $(ARGS)

pod-test: $(READY) ## two processes, 8, 4 and 1 devices train the same; runs move between them
	$(PY) -m pytest -m own -s tests/launch/test_pod_run.py $(ARGS)

crash-test: $(READY) ## kill -9 at ten moments changes no bit
	$(PY) -m pytest -m own -s tests/launch/test_crash.py $(ARGS)

soak: $(READY) ## half an hour of training, whose memory must not grow (SOAK_MINUTES)
	$(PY) -m pytest -m own -s tests/launch/test_soak.py $(ARGS)

bench-train: $(READY) .venv-bench/.ready ## a train step beside open_clip's on PyTorch (ARGS PEERS)
	$(PY) -m launch.bench train $(ARGS)

# No JAX in it: the peer is a process that imports nothing of this project.
.venv-bench/.ready: constraints.txt
	$(PY) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet --no-input --no-compile \
	  --disable-pip-version-check $(PEERS) -c constraints.txt
	@touch $@

plan: ## compile every config's step for its TPU, without a TPU (ARGS)
	@$(MAKE) --no-print-directory VENV=.venv-aot EXTRAS=dev,aot plan-here

plan-here: $(READY)
	$(PY) -m launch.plan $(or $(ARGS),--all)

plan-test: ## small steps by a TPU's own compiler, without a TPU
	@$(MAKE) --no-print-directory VENV=.venv-aot EXTRAS=dev,aot \
	  PYTEST_ARGS=tests/train/test_plan_tpu.py unit

clean: ## remove what tools left; .venv and runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fs_jax configs launch tests -name __pycache__ -type d \
	  -prune -exec rm -rf {} +
