# A fresh machine needs python3 (3.11 or newer) and make; the rest is brought by `make venv`.
# Another interpreter: make venv PYTHON=python3.12.  Some of the tests: make test ARGS="tests/networks -x".

PYTHON ?= python3
ARGS ?=
PIP_INDEX ?=
VENV := .venv
PY := $(VENV)/bin/python
# Written last, so an interrupted installation is taken up again by the next call.
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-motion check types quick test bench bench-motion bench-evad bench-gpu lint clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(INSTALLED) ## Create .venv and install Onlooker in it, once for each pyproject.toml

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Onlooker needs Python 3.11 or newer, which '$(PYTHON)' is not;" \
	       "name one: make venv PYTHON=python3.12" >&2; exit 1; }
	@# An environment that is already there is kept, one without pip (Debian without python3-venv) is completed.
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check $(PIP_INDEX) -e '.[dev]'
	@touch $@

# The DSTA student is distilled here, in a quarter of its config's steps; the teacher and TSA, which learned longer and from
# ground truth alone, are the shipped ones.
# Measured in 32-true, which has less to do for networks this small than bf16-mixed; it comes after the config, which
# names another precision for training.
TEST := $(PY) main.py test
MEASURED := --trainer.precision 32-true
SMALL := --data.source configs/data/puppets_small.yaml
# Without PyTorch's overhead: student and teacher in onnxruntime, timed in turn.
EXPORT := $(PY) main.py export --parity_frames 20 --frame_rate 16 --benchmark true

demo: venv ## Make the Puppets videos, distil the DSTA student, measure and export it beside its teacher and TSA
	$(PY) -m datamodules.puppets --size small
	$(PY) main.py fit --config configs/distill_dsta.yaml --trainer.max_epochs 1 --data.loader.samples_per_epoch 450
	$(TEST) --config configs/evad_16f.yaml --model.weights results/weights/evad_16f.pt $(MEASURED) $(SMALL)
	$(TEST) --config configs/distill_tsa.yaml --name tsa $(MEASURED) --model.weights results/weights/tsa.pt
	$(TEST) --config configs/distill_dsta.yaml $(MEASURED) --ckpt_path runs/distill_dsta/latest/checkpoints/last.ckpt
	$(EXPORT) --config configs/distill_tsa.yaml --name tsa --ckpt_path results/weights/tsa.pt
	$(EXPORT) --config configs/distill_dsta.yaml --ckpt_path runs/distill_dsta/latest/checkpoints/last.ckpt
	@echo "pictures: runs/distill_dsta/latest/detections.png; the table with all columns: results/benchmark.md"

# Temporal detection: what a motion teacher gives to a detector that sees RGB alone. Four epochs instead of the configs' six.
SHORT := --trainer.max_epochs 4
LAST = --ckpt_path runs/$(1)/latest/checkpoints/last.ckpt

demo-motion: venv ## Train motion teacher and RGB baseline, distil the one into the other, measure them and both together
	$(PY) -m datamodules.puppets --size small
	$(PY) main.py fit --config configs/motion_teacher.yaml $(SHORT)
	$(PY) main.py fit --config configs/rgb_baseline.yaml $(SHORT)
	$(PY) main.py fit --config configs/distill_motion.yaml $(SHORT)
	$(TEST) --config configs/motion_teacher.yaml $(MEASURED) $(call LAST,motion_teacher)
	$(TEST) --config configs/two_stream.yaml $(MEASURED)
	$(TEST) --config configs/rgb_baseline.yaml $(MEASURED) $(call LAST,rgb_baseline)
	$(TEST) --config configs/distill_motion.yaml $(MEASURED) $(call LAST,distill_motion)

# One thread per process: the tests are small, and more threads only fight over the cores. One process more than cores,
# five at most: some tests wait for other programs. A process has the tests of a file, since they share what takes long
# to make; the longest files begin, see tests/long_tests.py.
PROCESSES := $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 4) + 1)' 2>/dev/null || echo 2)
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

check: lint ## Check style, types and the quick tests (under three minutes on two cores)
	@$(MAKE) --no-print-directory --jobs=2 types quick

types: venv
	$(PY) -m mypy

quick: venv
	$(PYTEST) -m "not slow"

test: venv ## Run all tests, up to five at a time: neither GPU nor data set needed
	$(PYTEST) $(ARGS)

bench: venv ## Time students of every size, in float32 and int8, against the ViT-B teacher (most of an hour on two cores)
	$(PY) -m results.benchmarks.student_speed $(ARGS)
	$(PY) -m results.benchmarks.latency_map

bench-motion: venv ## Time an RGB detector, the distilled one and the two-stream system (a minute)
	$(PY) -m results.benchmarks.motion_speed $(ARGS)

bench-evad: venv ## Time EVAD at its published size against the published arithmetic (half an hour on two cores)
	$(PY) -m results.benchmarks.evad_speed $(ARGS)

bench-gpu: venv ## Time steps, many streams, training and compilation on one GPU (eight minutes at most)
	$(PY) -m results.benchmarks.gpu $(ARGS)

lint: venv ## Check style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean: ## Remove .venv and caches; data/ and runs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .snakemake onlooker.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
