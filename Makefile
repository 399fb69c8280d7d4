# Everything that a person or the CI does with this repository. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
HEIMDEX_URL ?= http://localhost:8000
PYTEST_ARGS ?=
BENCH_ARGS ?=
CHECK_ARGS ?=
# The tests wait for timers and servers more than they compute: more workers than most machines have cores pay.
TEST_WORKERS ?= 4

PYTEST := $(VENV)/bin/pytest -n $(TEST_WORKERS) --dist loadgroup
STAMP := $(VENV)/.heimdex-setup
CONSTRAINTS := $(wildcard constraints.txt)
LAST_JOB := .heimdex/last-job

.DEFAULT_GOAL := help

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- on this machine ---------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMP) ## install everything into .venv (needs python3 >= 3.11; PYTHON=... chooses another one)
	@:

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one with PYTHON=..." >&2; \
		exit 1; }
	@# What an interrupted setup left, or one that another Python made, is made anew.
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
		rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } || { \
		rm -rf $(VENV); \
		echo "$(PYTHON) could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv." >&2; \
		exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
	@touch $@

.PHONY: demo
demo: $(STAMP) ## start the whole system, run one job that completes and one that fails, stop it all
	@$(VENV)/bin/heimdex demo

.PHONY: run
run: $(STAMP) ## the whole system on http://localhost:8000 until Ctrl-C; its data stay under .heimdex/
	@$(VENV)/bin/heimdex run

# --- in containers -----------------------------------------------------------------------------------------------

.PHONY: up
up: ## build and start the compose deployment, and wait until it is healthy
	docker compose up --build --wait --detach

.PHONY: down
down: ## stop the compose deployment; its volumes stay
	docker compose down

.PHONY: logs
logs: ## follow the logs of the compose deployment
	docker compose logs --follow --tail 100

.PHONY: ps
ps: ## what the compose deployment runs
	docker compose ps

# --- try it (curl and python3 only, against HEIMDEX_URL, with HEIMDEX_API_KEY where it is set) --------------------

.PHONY: test-job
test-job: ## submit a job
	@$(call submit,{"type": "mock_process"})

.PHONY: test-job-fail
test-job-fail: ## submit a job that fails at analyzing
	@$(call submit,{"type": "mock_process"$(comma) "fail_at_stage": "analyzing"})

.PHONY: check-job
check-job: ## show the last job that was submitted here
	@test -s $(LAST_JOB) || { echo "No job was submitted here yet: make test-job does." >&2; exit 1; }
	@$(call ask,"$(HEIMDEX_URL)/jobs/$$(cat $(LAST_JOB))"); \
	printf '%s' "$$body" | $(PYTHON) -m json.tool

comma := ,

# Ask the API (the argument is curl's): the answer's body is then in $$body. A refusal is printed as it came.
define ask
reply=$$(curl --silent --show-error --max-time 15 --write-out '\n%{http_code}' \
	$${HEIMDEX_API_KEY:+--header "authorization: Bearer $$HEIMDEX_API_KEY"} $(1) 2>&1) || { \
	echo "$(HEIMDEX_URL) cannot be asked (is it running? make run, or make up): $$(echo "$$reply" | head -n 1)" >&2; \
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
test: $(STAMP) ## the whole test suite (PYTEST_ARGS="-k name" chooses)
	$(PYTEST) $(PYTEST_ARGS)

# They load both the machine and the clock: fewer at a time than of the short ones.
.PHONY: test-full
test-full: $(STAMP) ## the tests that take long: many jobs, many server versions, the storm on a cluster (about half an hour)
	HEIMDEX_CHAOS_SECONDS=60 $(VENV)/bin/pytest -n 2 --dist loadgroup -m full $(PYTEST_ARGS)

.PHONY: cluster-check
cluster-check: $(STAMP) ## 56,000 jobs through three NATS nodes, two server versions, idle and busy (CHECK_ARGS chooses)
	$(VENV)/bin/python -m tests.cluster_check $(CHECK_ARGS)

.PHONY: test-containers
test-containers: $(STAMP) ## the tests that need Docker: the official NATS and Postgres images
	HEIMDEX_TEST_BACKEND=containers $(PYTEST) -m containers $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(STAMP) ## ten minutes of killing and freezing things under load, ten more on three NATS nodes, and the long faults
	HEIMDEX_CHAOS_SECONDS=600 $(VENV)/bin/pytest tests/chaos -m '' --timeout 1800 $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMP) ## formatter, linter, type checker, import rules
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

.PHONY: fmt
fmt: $(STAMP) ## format the code, and fix what the linter can fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

.PHONY: bench
bench: $(STAMP) ## the benchmarks (BENCH_ARGS chooses)
	$(VENV)/bin/python -m bench.run $(BENCH_ARGS)

.PHONY: bench-peers
bench-peers: $(STAMP) ## the same work done by other job systems
	$(VENV)/bin/python -m bench.peers.run $(BENCH_ARGS)

.PHONY: soak
soak: $(STAMP) ## half an hour of load (BENCH_ARGS="--minutes 240": four): does anything grow, slow down or get lost?
	$(VENV)/bin/python -m bench.soak $(BENCH_ARGS)
