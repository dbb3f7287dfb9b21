# One environment, made on first use; every target below runs in it.
PY ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OK = $(VENV)/.ok
# One process for each core; a file's tests share what is made once for them.
SPREAD = -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check docs lock build clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

$(OK): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(OK) ## make the environment: the package, editable, with everything that developing needs

# The model is so small that several threads would only wait for each other.
demo: $(OK) ## stress-test the built-in digits model and print where the report lies
	$(BIN)/robustml stress digits --threads 1 --out runs/demo --overwrite

test: $(OK) ## run the tests, without the slow ones
	$(BIN)/python -m pytest $(SPREAD) -m "not slow"

test-all: $(OK) ## run all the tests
	$(BIN)/python -m pytest $(SPREAD)

check: $(OK) ## format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

docs: $(OK) ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

lock: $(OK) ## write the installed versions to constraints.txt: names and versions, nothing of where they came from
	@echo '# Versions that are tested together; regenerate with `make lock`.' > constraints.txt.new
	@$(BIN)/python -m pip freeze --exclude-editable | sed -n 's/^\([A-Za-z0-9._-]*\)==\([^+ ]*\).*/\1==\2/p' \
		| grep -viE '^(pip|setuptools|wheel)==' | LC_ALL=C sort -f >> constraints.txt.new
	@mv constraints.txt.new constraints.txt && touch $(OK)

build: $(OK) ## build the source distribution and the wheel into dist
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## remove what the other targets made, and the environment
	rm -rf $(VENV) build dist runs docs/_build docs/examples *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
