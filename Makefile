# A fresh machine needs python3 (3.11 or newer) and make; the rest is brought by `make venv`.
# Another interpreter: make venv PYTHON=python3.12.  Some of the tests: make test ARGS="tests/networks -x".

PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
# Written last, so an interrupted installation is taken up again by the next call.
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(INSTALLED) ## Create .venv and install Onlooker in it, once for each pyproject.toml

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Onlooker needs Python 3.11 or newer, which '$(PYTHON)' is not;" \
	       "name one: make venv PYTHON=python3.12" >&2; exit 1; }
	@# An environment that is already there is kept, one without pip (Debian without python3-venv) is completed.
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: venv ## Make the Puppets videos, train the teacher, distil the DSTA student, measure both
	$(PY) -m datamodules.puppets --size small
	$(PY) main.py fit --config configs/evad.yaml
	$(PY) main.py fit --config configs/distill_dsta.yaml
	$(PY) main.py test --config configs/evad.yaml --ckpt_path runs/evad/last.ckpt
	$(PY) main.py test --config configs/distill_dsta.yaml --ckpt_path runs/distill_dsta/last.ckpt

# One thread a process: the tests are small, and more threads only fight over the cores.
test: venv ## Run the tests: neither GPU nor data set needed
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest $(ARGS)

lint: venv ## Check style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean: ## Remove .venv and caches; data/ and runs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache onlooker.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
