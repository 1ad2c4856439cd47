# The handbook's commands. `make` alone lists them.
# Needs GNU make 3.81 or later, a POSIX sh and Python 3.11, 3.12 or 3.13 with its venv module.

PORT ?= 8000
export PATTERN PORT
export PYTHONPATH := $(CURDIR)
# Material's notice about its own future; the versions are pinned.
export NO_MKDOCS_2_WARNING := 1

PY := .venv/bin/python
BENCH := .venv-bench/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:
.PHONY: help site serve test quick bench faults examples diagrams notebooks new missing check clean \
	venv venv-bench venv-bench-arq known

help:
	@echo "The handbook's commands:"
	@awk -F ' *## ' '/^[a-z-]+:.*##/ { split($$1, name, ":"); \
		printf "  make %-30s %s\n", name[1] ($$3 ? " " $$3 : ""), $$2 }' Makefile
	@echo "Variables: PYTHON=python3.12 makes .venv with another Python; PORT=8001 serves on another port."

site: venv ## render every diagram and build site/, strictly
	@$(PY) -m tools.diagrams
	@$(PY) -m tools.site build

serve: venv ## the same on 127.0.0.1:8000, reloading when a file changes
	@$(PY) -m tools.site serve

test: venv ## the whole proof: tests, faults, examples, notebooks, site, types; takes some minutes
	@$(PY) -m tools.prove

quick: venv ## what needs no server, browser or container; at most a minute
	@$(PY) -m tools.prove quick

bench: known venv-bench venv-bench-arq ## measure with and without, and write results/benchmarks ## [PATTERN=cat/name]
	@$(BENCH) -m benchmarks.run $(if $(PATTERN),"$$PATTERN")

faults: known venv ## inject every fault, and write results/faults ## [PATTERN=cat/name]
	@RESULTS_DIR=results $(PY) -m pytest -q -s -W error -m fault \
		$(if $(PATTERN),"tests/$$(dirname "$$PATTERN")/test_$$(basename "$$PATTERN").py",tests)

examples: known venv ## run the pages' examples, and write their outputs and results ## [PATTERN=cat/name]
	@$(PY) -m tools.examples $(if $(PATTERN),"$$PATTERN")

diagrams: known venv ## draw docs/assets/diagrams again ## [PATTERN=cat/name]
	@$(PY) -m tools.diagrams $(if $(PATTERN),"$$PATTERN")

notebooks: known venv ## execute every notebook and save it again ## [PATTERN=cat/name]
	@$(PY) -m tools.notebooks $(if $(PATTERN),"$$PATTERN")

new: venv ## write the six files of a new pattern ## PATTERN=cat/name
	@$(PY) -m tools.new "$$PATTERN"

missing: venv ## say what each pattern still lacks
	@$(PY) -m tools.missing

check: venv ## format, lint, check the types, then make test
	@$(PY) -m ruff format
	@$(PY) -m ruff check --fix
	@$(PY) -m mypy
	@$(PY) -m tools.prove

clean: ## remove everything that these commands made
	@rm -rf .venv .venv-bench .venv-bench-arq site .cache .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache \
		.ruff_cache dist
	@find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@PYTHON="$(PYTHON)" sh tools/venv.sh .venv requirements.txt

venv-bench:
	@PYTHON="$(PYTHON)" sh tools/venv.sh .venv-bench requirements-bench.txt

venv-bench-arq:
	@PYTHON="$(PYTHON)" sh tools/venv.sh .venv-bench-arq requirements-bench-arq.txt

known:
	@case "$$PATTERN" in "") ;; */*) test -e "patterns/$$PATTERN.py" || test -e "patterns/$$PATTERN/__init__.py" ;; \
		*) test -e "docs/$$PATTERN.md" ;; esac || { \
		echo "There is no pattern '$$PATTERN' here: give a key such as resiliency/circuit_breaker." >&2; exit 2; }
