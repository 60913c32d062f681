# Every target does all its own set-up; a second run starts from caches.
.DEFAULT_GOAL := help
.PHONY: help setup parts format lint check generate install-yaml test e2e cluster-smoke cluster-test soak alerts drill faults powerloss kills rollback histories fuzz bench images images-test test-images demo up down status cluster clean

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/derops
TOOLS := $(CACHE)/tools
PYTHON := .venv/bin/python
PROTOS := $(wildcard headend/derops/wire/v1/*.proto)

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.complete  ## Install what the other targets need, into .venv

.venv/.complete: pyproject.toml uv.lock
	@scripts/setup '$(TOOLS)'
	@touch $@

parts: setup  ## Have the real parts that tests use: found, or made once
	@$(PYTHON) -m tests.stack.parts

format: setup  ## Mend style where that can be done by itself
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lint: setup  ## Check style, types and the direction of imports
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

check: lint  ## Check style, and run the tests that need no real part: no API server, no database, nothing built
	DEROPS_WITHOUT_PARTS=1 .venv/bin/pytest -n 2 --dist loadfile -rfE

generate: setup  ## Generate the wire format's Python code, the schema of profiles, the API's description and page, and what the chart copies
	$(PYTHON) -m grpc_tools.protoc -I headend --python_out=headend --pyi_out=headend \
		--grpc_python_out=headend $(PROTOS)
	rm -f headend/derops/wire/v1/dispatch_pb2_grpc.py headend/derops/wire/v1/log_pb2_grpc.py
	$(PYTHON) -m derops_agent.drivers.modbus > docs/reference/modbus-profile.schema.json
	$(PYTHON) -m derops_headend.api > docs/reference/openapi.json
	$(PYTHON) scripts/api_reference.py > docs/reference/api.md
	$(PYTHON) scripts/chart.py generate

install-yaml: setup  ## Render the chart into build/install.yaml; VALUES=file
	@PYTHONPATH=. $(PYTHON) scripts/chart.py install-yaml build/install.yaml $(VALUES)

test: parts  ## Run all tests, on real parts
	.venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder  # three keep two processors busy

e2e: parts  ## Run the end-to-end tests only
	.venv/bin/pytest tests/e2e

cluster-smoke: since := $(shell date +%s)
cluster-smoke: test-images cluster  ## Install in the cluster and run a first dispatch there; takes derops out of it
	DEROPS_BEGUN=$(since) .venv/bin/pytest -s tests/cluster/test_smoke.py

cluster-test: test-images cluster  ## Break the product in the cluster; takes derops out of it
	.venv/bin/pytest -s tests/cluster

soak: faults powerloss kills histories fuzz  ## Break everything many times over, and check

faults: parts  ## Break the way of the telemetry; DEROPS_SEED, DEROPS_ROUNDS
	GRPC_ENABLE_FORK_SUPPORT=0 $(PYTHON) -m tests.faults  # else its handlers fail in what we start

alerts: parts  ## Break what alerts are for; DEROPS_CAUSES, DEROPS_QUIET_SECONDS
	GRPC_ENABLE_FORK_SUPPORT=0 $(PYTHON) -m tests.alerts

drill: parts  ## Break one thing, say only the symptom, and see whether it is found; DEROPS_FAULTS, DEROPS_ROUNDS, DEROPS_SEED, DEROPS_PLAY
	@GRPC_ENABLE_FORK_SUPPORT=0 $(PYTHON) -m tests.drill

powerloss: setup  ## Cut the power while stores write; DEROPS_SEED, DEROPS_CRASHES
	$(PYTHON) -m tests.powerloss

kills: parts  ## kill -9 of parts while dispatches run; DEROPS_SEED, DEROPS_ROUNDS
	$(PYTHON) -m tests.kills

rollback: parts  ## Upgrade from an earlier release and roll back to it; PREVIOUS=commit
	GRPC_ENABLE_FORK_SUPPORT=0 PREVIOUS='$(PREVIOUS)' $(PYTHON) -m tests.rollback

histories: setup  ## Dispatches through whatever may befall them; DEROPS_SEED, DEROPS_EXAMPLES
	DEROPS_EXAMPLES=$(or $(DEROPS_EXAMPLES),10000) .venv/bin/pytest -s tests/lifecycle --timeout=0 \
		$(if $(DEROPS_SEED),--hypothesis-seed=$(DEROPS_SEED))

fuzz: parts  ## A million messages that may be anything, to the database; DEROPS_SEED, DEROPS_MESSAGES
	DEROPS_MESSAGES=$(or $(DEROPS_MESSAGES),1000000) .venv/bin/pytest -s --timeout=0 \
		tests/headend/writing/test_fuzzing.py

bench: parts  ## Measure; prints JSON lines
	$(PYTHON) -m tests.bench $(BENCH)

images: setup  ## Make the container images; VERSION, BASE, see docs/how-to/build-images.md
	@$(PYTHON) -m images $(foreach arch,$(ARCHS),--arch $(arch))

images-test: images  ## Inspect and run the images, and make one of them a second time
	.venv/bin/pytest --timeout=900 tests/images/built

test-images: setup  # of this machine's architecture, with those that only tests use
	@$(PYTHON) -m images --arch own
	@$(PYTHON) -m tests.images

demo: setup  ## Run the examples on the whole product and watch
	@$(PYTHON) -m tests.stack demo

up: setup  ## Start the whole product in the background; see build/stack.json
	@$(PYTHON) -m tests.stack up

cluster: setup  ## Have a real Kubernetes cluster with our images; see build/cluster.json
	@$(PYTHON) -m tests.kind up

down: setup  ## End what "make up" and "make cluster" started
	@$(PYTHON) -m tests.stack down
	@$(PYTHON) -m tests.kind down

status: setup  ## Say what "make up" runs and how to use it
	@$(PYTHON) -m tests.stack status

clean:  ## Remove what was built here; the caches outside the tree stay
	@if [ -x $(PYTHON) ] && [ -f build/stack.json ]; then $(PYTHON) -m tests.stack down; fi
	@if [ -x $(PYTHON) ] && [ -f build/cluster.json ]; then $(PYTHON) -m tests.kind down; fi
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
