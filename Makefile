# Each target's line below is its help; `make` alone prints them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PORT ?= 8000
MANIFEST ?= docs/quickstart/inferencemodel.yaml
BIN := .venv/bin
COMPONENTS := operator router worker bench
LOCKS := $(COMPONENTS:%=%/requirements.lock)
READY := .venv/.ready
# uv must not write addresses or fetch interpreters of its own.
export UV_PYTHON_DOWNLOADS := never
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help
help: ## List every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Create .venv with everything pinned (a no-op the second time)

$(READY): $(LOCKS) $(COMPONENTS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Pagoda needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@awk '/^uv==/ {p = 1} p {print} p && !/\\$$/ {exit}' bench/requirements.lock > .venv/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	@echo "setup: installing the pinned dependencies into .venv (torch is large: about a minute)"
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --require-hashes $(LOCKS:%=-r %)
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation $(COMPONENTS:%=-e ./%)
	@touch $@

.PHONY: lock
lock: ## Compile every X/requirements.lock anew, under one constraint set
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  --constraint <(echo "torch==2.13.0") $(COMPONENTS:%=%/pyproject.toml) -o .venv/all.txt
	@for c in $(COMPONENTS); do extra=; test $$c = bench && extra="--extra dev" || true; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 $$extra --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	    --generate-hashes --constraint .venv/all.txt $$c/pyproject.toml -o $$c/requirements.lock; done

.PHONY: proto
proto: $(READY) ## Generate the gRPC stubs of router and worker from worker/proto
	@for c in router worker; do $(BIN)/python bench/src/pagoda_bench/proto.py worker/proto/pagoda/worker/v1/worker.proto $$c/src/pagoda_$$c/wire; done
