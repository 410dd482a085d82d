# One word per chore. Each target sets up what it needs in .venv and says what it does.
#
#   make demo    the whole loop on a year of real flights, then the page at http://127.0.0.1:7070
#                (make demo ARGS=--no-serve ends without the page)
#   make test    the checks, then the tests
#   make check   lint, types, layers, dependencies, dead code
#   make bench   the benchmarks, with their figures; after make peers beside those of other tools
#   make peers   two environments with those tools, in .venv-peers and .venv-peers-data
#   make crash   kill, fill, lock and break everything a few thousand times, and look whether anything is lost
#                (make crash ARGS="--only disk --seed 7" for one part)
#   make docs    write the generated pages of docs/reference again
#   make ui      the page of the demo's project, served from where the demo left it

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
# A stamp is keyed by what it depends on, not by a time: a fresh clone, an edit and a switch of branch all tell the truth.
KEY := $(shell cksum < pyproject.toml | cut -d' ' -f1)
RUNS := $(VENV)/.installed-demo-$(KEY)
DEV := $(VENV)/.installed-dev-$(KEY)
PEERS_KEY := $(VENV)-peers/.installed-$(shell cksum < benchmarks/peers.txt | cut -d' ' -f1)
PEERS_DATA_KEY := $(VENV)-peers-data/.installed-$(shell cksum < benchmarks/peers-data.txt | cut -d' ' -f1)
# Many tests wait for another process: three at a time keep two cores at work.
PYTEST_ARGS ?= -n 3 --dist worksteal

.PHONY: help demo test check bench peers crash docs ui setup clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "palan needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)"; echo "hint: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@if command -v uv >/dev/null; then uv venv --quiet --python $(PYTHON) $(VENV); else $(PYTHON) -m venv $(VENV); fi

define install
	@echo "== installing palan[$(1)] and what it needs into $(VENV)"
	@if command -v uv >/dev/null; then uv pip install --compile-bytecode --python $(BIN)/python -e '.[$(1)]'; else $(BIN)/python -m pip install --disable-pip-version-check --prefer-binary -e '.[$(1)]'; fi
endef

$(DEV): | $(BIN)/python
	$(call install,dev)
	@rm -f $(VENV)/.installed-*; touch $(DEV) $(RUNS)

$(RUNS): | $(BIN)/python
	$(call install,demo)
	@touch $(RUNS)

# Where Python is told to write no bytecode, every start of palan would compile it anew.
define compile
	@$(BIN)/python -m compileall -q src
endef

setup: $(DEV)

demo: $(RUNS)
	$(call compile)
	@echo "== palan demo $(ARGS)"
	@$(BIN)/palan demo $(ARGS)

test: check
	$(call compile)
	@echo "== tests"
	@$(BIN)/python -m pytest $(PYTEST_ARGS) $(ARGS)

check: $(DEV)
	@echo "== ruff";        $(BIN)/ruff check .
	@echo "== mypy";        $(BIN)/mypy
	@echo "== layers";      $(BIN)/lint-imports
	@echo "== deptry";      $(BIN)/deptry src
	@echo "== vulture";     $(BIN)/vulture
	@echo "== checks are clean"

bench: $(DEV)
	$(call compile)
	@if [ -f $(PEERS_KEY) ]; then export PEERS=$(abspath $(VENV)-peers/bin/python); fi; \
	if [ -f $(PEERS_DATA_KEY) ]; then export PEERS_DATA=$(abspath $(VENV)-peers-data/bin/python); fi; \
	for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file $(ARGS); done

peers: $(PEERS_KEY) $(PEERS_DATA_KEY)

define environment
	@echo "== installing the tools of $(1) into $(2)"
	@if command -v uv >/dev/null; then uv venv --quiet --allow-existing --python $(PYTHON) $(2) && uv pip install --compile-bytecode --python $(2)/bin/python -r $(1); \
	else $(PYTHON) -m venv $(2) && $(2)/bin/python -m pip install --disable-pip-version-check --prefer-binary -r $(1); fi
	@touch $@
endef

$(PEERS_KEY): benchmarks/peers.txt
	$(call environment,benchmarks/peers.txt,$(VENV)-peers)

$(PEERS_DATA_KEY): benchmarks/peers-data.txt
	$(call environment,benchmarks/peers-data.txt,$(VENV)-peers-data)

crash: $(DEV)
	$(call compile)
	@PYTHONPATH=tests $(BIN)/python -m crash $(ARGS)

docs: $(DEV)
	@$(BIN)/python docs/generate.py

ui: $(RUNS)
	@test -f palan-demo/palan.toml || { echo "== no palan-demo yet: making it"; $(BIN)/palan demo --no-serve; }
	@cd palan-demo && ../$(BIN)/palan up $(ARGS)

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
