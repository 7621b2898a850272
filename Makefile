# Two commands are all that a newcomer needs: make demo, make test. make help names the others.
PYTHON ?= python3
ARGS ?=
TEST_SECONDS_MAX ?= 1500
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check fmt lock environment

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: environment ## Run a fleet on this computer (ARGS="…" goes to terafleet demo)
	@$(BIN)/terafleet demo $(ARGS)

test: check ## Run every check and every test (ARGS="…" goes to pytest)
	$(BIN)/pytest -n 2 --session-timeout=$(TEST_SECONDS_MAX) $(ARGS)

check: environment ## Check style, types and imports, without running anything
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fmt: environment ## Put all sources into the house's form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: python ## Resolve the dependencies again (ARGS="--upgrade" takes newer ones)
	@$(PYTHON) tools/environment.py lock $(ARGS)

environment: python ## Make .venv as requirements.lock says
	@$(PYTHON) tools/environment.py

.PHONY: python
python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "terafleet: there is no $(PYTHON) here. Install Python 3.11, 3.12 or 3.13," >&2; \
	  echo "or say where one is: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
