# Every task that a person or the CI runs in this repository. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
HEIMDEX_URL ?= http://localhost:8000
PYTEST_ARGS ?=
BENCH_ARGS ?=
CHECK_ARGS ?=
# The tests mostly wait for timers and servers, so more workers than cores make them faster.
TEST_WORKERS ?= 4

PYTEST := $(VENV)/bin/pytest -n $(TEST_WORKERS) --dist loadgroup
STAMP := $(VENV)/.heimdex-setup
CONSTRAINTS := $(wildcard constraints.txt)
LAST_JOB := .heimdex/last-job

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- on this machine ---------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMP) ## install everything into .venv (needs python3 >= 3.11; PYTHON=... selects another one)
	@:

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found: install Python 3.11 or newer, or set PYTHON=/path/to/python3." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is required, but $(PYTHON) is $$($(PYTHON) -V 2>&1): set PYTHON=/path/to/python3." >&2; \
		exit 1; }
	@# Replaces an environment that an interrupted setup left, or that another Python created.
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
		rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } || { \
		rm -rf $(VENV); \
		echo "$(PYTHON) could not create a virtual environment. On Debian and Ubuntu: apt install python3-venv." >&2; \
		exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
	@touch $@

.PHONY: demo
demo: $(STAMP) ## start the whole system, run one job that completes and one that fails, then stop everything
	@$(VENV)/bin/heimdex demo

.PHONY: run
run: $(STAMP) ## run the whole system on http://localhost:8000 until Ctrl-C; its data stay under .heimdex/
	@$(VENV)/bin/heimdex run

# --- in containers -----------------------------------------------------------------------------------------------

.PHONY: up
up: ## build and start the compose deployment, and wait until it is healthy
	docker compose up --build --wait --detach

.PHONY: down
down: ## stop the compose deployment; keep its volumes
	docker compose down

.PHONY: logs
logs: ## follow the logs of the compose deployment
	docker compose logs --follow --tail 100

.PHONY: ps
ps: ## list the containers of the compose deployment
	docker compose ps

# --- try it (curl and python3 only, against HEIMDEX_URL, with HEIMDEX_API_KEY where it is set) --------------------

.PHONY: test-job
test-job: ## submit a job
	@$(call submit,{"type": "mock_process"})

.PHONY: test-job-fail
test-job-fail: ## submit a job that fails at analyzing
	@$(call submit,{"type": "mock_process"$(comma) "fail_at_stage": "analyzing"})

.PHONY: check-job
check-job: ## show the last job submitted from here
	@test -s $(LAST_JOB) || { echo "No job was submitted from here yet: run make test-job first." >&2; exit 1; }
	@$(call ask,"$(HEIMDEX_URL)/jobs/$$(cat $(LAST_JOB))"); \
	printf '%s' "$$body" | $(PYTHON) -m json.tool

comma := ,

# Sends a request to the API (the arguments are curl's) and puts the response body into $$body. Prints an error
# response unchanged.
define ask
reply=$$(curl --silent --show-error --max-time 15 --write-out '\n%{http_code}' \
	$${HEIMDEX_API_KEY:+--header "authorization: Bearer $$HEIMDEX_API_KEY"} $(1) 2>&1) || { \
	echo "$(HEIMDEX_URL) cannot be reached (start it with make run or make up): $$(echo "$$reply" | head -n 1)" >&2; \
	exit 1; }; \
code=$$(printf '%s' "$$reply" | tail -n 1); \
body=$$(printf '%s' "$$reply" | sed '$$d'); \
case "$$code" in \
	2??) ;; \
	*) echo "$(HEIMDEX_URL) answered $$code: $$body" >&2; exit 1 ;; \
esac
endef

define submit
$(call ask,--header 'content-type: application/json' --data '$(1)' "$(HEIMDEX_URL)/jobs"); \
printf '%s\n' "$$body"; \
mkdir -p $(dir $(LAST_JOB)) && \
printf '%s' "$$body" | sed -n 's/.*"job_id": *"\([^"]*\)".*/\1/p' > $(LAST_JOB)
endef

# --- checks ------------------------------------------------------------------------------------------------------

.PHONY: test
test: $(STAMP) ## run the whole test suite (PYTEST_ARGS="-k name" selects tests)
	$(PYTEST) $(PYTEST_ARGS)

# These tests load the machine and depend on timing, so fewer of them run at a time.
.PHONY: test-full
test-full: $(STAMP) ## run the long tests (half an hour): many jobs, many server versions, random faults on a cluster
	HEIMDEX_CHAOS_SECONDS=60 $(VENV)/bin/pytest -n 2 --dist loadgroup -m full $(PYTEST_ARGS)

# The release before, by commit, installed into an environment of its own.
UPGRADE_FROM ?= a308ed7
BEFORE := .heimdex/upgrade/$(UPGRADE_FROM)

$(BEFORE)/venv/bin/heimdex-gateway:
	mkdir -p $(BEFORE)/src
	git archive $(UPGRADE_FROM) | tar -x -C $(BEFORE)/src
	$(VENV)/bin/python -m venv $(BEFORE)/venv
	$(BEFORE)/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	'$(BEFORE)/src[gateway,stage-worker,status-store]'

.PHONY: test-upgrade
test-upgrade: $(STAMP) $(BEFORE)/venv/bin/heimdex-gateway ## mix this release with the one before, in both directions
	HEIMDEX_TEST_BEFORE=$(BEFORE)/venv/bin $(VENV)/bin/pytest -m upgrade $(PYTEST_ARGS)

.PHONY: cluster-check
cluster-check: $(STAMP) ## run 56,000 jobs on three NATS nodes, two server versions, idle and busy (options: CHECK_ARGS)
	$(VENV)/bin/python -m tests.cluster_check $(CHECK_ARGS)

.PHONY: test-containers
test-containers: $(STAMP) ## run the tests that need Docker: the official NATS and Postgres images
	HEIMDEX_TEST_BACKEND=containers $(PYTEST) -m containers $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(STAMP) ## kill and freeze processes under load: ten minutes, ten more on a cluster, and the long fault tests
	HEIMDEX_CHAOS_SECONDS=600 $(VENV)/bin/pytest tests/chaos -m '' --timeout 1800 $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMP) ## check formatting, lint rules, types and import rules
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

.PHONY: fmt
fmt: $(STAMP) ## format the code, and fix what the linter can fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

.PHONY: bench
bench: $(STAMP) ## run the benchmarks (options: BENCH_ARGS)
	$(VENV)/bin/python -m bench.run $(BENCH_ARGS)

.PHONY: bench-peers
bench-peers: $(STAMP) ## run the same work on other job systems
	$(VENV)/bin/python -m bench.peers.run $(BENCH_ARGS)

.PHONY: soak
soak: $(STAMP) ## half an hour of load (BENCH_ARGS="--minutes 240": four); nothing may grow, slow down or get lost
	$(VENV)/bin/python -m bench.soak $(BENCH_ARGS)
