# All paths are relative, so that a checkout works in any folder, one with spaces in its name too.

BIN := .venv/bin
PYTHON = $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)

.PHONY: help run test lint test-slow docs bench clean

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

run: .venv/installed-run  ## train the main job; make run ARGS="--quick" passes options on
	$(BIN)/polypath run moe-lm $(ARGS)

test: lint  ## style, floors, types and the tests that are quick
	@echo "Tests, without the slow ones"
	@$(BIN)/python -m pytest $(ARGS)

lint: .venv/installed-test  ## style, floors and types alone
	@echo "Style: ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@echo "Floors: import-linter"
	@$(BIN)/lint-imports --no-logo
	@echo "Types: mypy"
	@$(BIN)/python -m mypy

test-slow: .venv/installed-test  ## the slow tests alone
	@echo "Slow tests"
	@$(BIN)/python -m pytest -m slow $(ARGS)

docs: .venv/installed-docs  ## the documentation, as pages under site/
	@echo "Documentation into site/"
	@$(BIN)/python -m mkdocs build --strict --quiet

bench: .venv/installed-run  ## the MoE layer beside its peers
	$(BIN)/python benchmarks/moe_layer.py $(ARGS)

clean:  ## remove the environment, caches and built pages; runs/ stays
	@echo "Removing .venv, caches, build/, dist/ and site/"
	@rm -rf .venv build dist site .*_cache .hypothesis

# One stamp for each set of packages: pip runs only when the files it reads have changed.
package-run = .
package-test = .[test]
package-docs = .[docs]

.venv/installed-%: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing $(package-$*) with the versions of constraints.txt (minutes, the first time)"
	@$(BIN)/python -m pip install -qq -c constraints.txt -e "$(package-$*)"
	@touch $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "polypath needs Python 3.11 or newer, as python3.11 or" \
		"python3 on the PATH, or named: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Making .venv with $(PYTHON)"
	@"$(PYTHON)" -m venv --clear .venv || { rm -rf .venv; exit 1; }
