# Every target is a line or two over the preflab command; `make` lists them.
PYTHON ?= python3
PROFILE ?= default
DATA ?= data
NAME ?= 01_sequential_settings
VENV := .venv
STAMP := $(VENV)/.stamp
BIN := $(VENV)/bin
NAMES := $(basename $(notdir $(wildcard notebooks/src/*.py)))
SOLUTIONS := $(basename $(notdir $(wildcard notebooks/src/solutions/*.py)))
BESIDE := $(patsubst %,tests/test_%.py,notebooks runs identity)  # the half of `make test` that takes as long as the rest
TRAINING := $(filter-out 90_benchmarks,$(NAMES))

.DEFAULT_GOAL := help
.PHONY: help env reproduce test test-library test-notebooks kills whole mutants expected bench real gpu gpu-tests gpu-sizes gpu-real model lab sync notebooks figures book slides cluster clean-cache

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

env: $(STAMP)  ## Build .venv from requirements.lock (PYTHON=python3.11 picks the interpreter)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: PYTHON=$(PYTHON): expected Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -r requirements.lock
	$(BIN)/pip install --no-deps -e .
	@touch $@

reproduce: env  ## Run every notebook of PROFILE (default) and print the verdicts
	$(BIN)/preflab reproduce --profile $(PROFILE)

test: env  ## Lint, check the format, run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j2 test-library test-notebooks  # the one leaves a core idle that the other can use

test-library: env
	$(BIN)/pytest -q $(BESIDE:%=--ignore %)

test-notebooks: env
	$(BIN)/pytest -q $(BESIDE)

kills: env  ## Kill smoke runs 30 times at random moments (half an hour; no part of `make test`)
	$(BIN)/pytest -q -m soak tests/test_kills.py

whole: env  ## Execute every committed notebook and solution from cold and compare (`make test` does so with three of them)
	$(BIN)/pytest -q -m "soak or not soak" tests/test_notebooks.py -k from_cold

mutants: env  ## Break 100 things, one at a time, in what decides numbers, and see whether a test fails
	$(BIN)/python tests/mutants.py

expected: env  ## Write the numbers of the smoke runs anew that the tests compare with
	set -e; for name in $(TRAINING); do $(BIN)/preflab run $$name --profile smoke; \
	cp results/smoke/$$name/metrics.json tests/expected/$$name.json; done

bench: env  ## Measure speeds against TRL and against plain autograd
	$(BIN)/preflab run 90_benchmarks --profile $(PROFILE)

model: env  ## Get the small pretrained model smollm2 to models/ (0.3 to 0.6 GB of disk)
	$(BIN)/preflab model smollm2

lab: env  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

real: model  ## A real model and TruthfulQA's two human labels (DATA=folder that holds truthfulqa/)
	$(BIN)/preflab run 01_sequential_settings_truthfulqa --profile real -p data=$(DATA)

gpu: gpu-tests gpu-sizes gpu-real  ## On a CUDA machine: the tests that need one, real architectures, real notebooks (DATA=folder)

gpu-tests: env  ## Its first part, as the next two, takes less than ten minutes: the tests
	$(BIN)/pytest -q tests/test_gpu.py

gpu-sizes: model  ## SmolLM2, and Llama-3.1-8B and Pythia-2.8B with random weights, beside TRL (DATA=folder that holds hh-rlhf/)
	$(BIN)/preflab model llama-3.1-8b
	$(BIN)/preflab model pythia-2.8b
	set -e; for file in params/gpu/90*.yaml; do \
	$(BIN)/preflab run $$(basename $$file .yaml) --profile gpu -p data=$(DATA); done

gpu-real: model  ## The notebooks of params/gpu, of real models (DATA=folder)
	set -e; for file in params/gpu/0*.yaml; do \
	$(BIN)/preflab run $$(basename $$file .yaml) --profile gpu -p data=$(DATA); done

sync: env  ## Bring what was edited in JupyterLab to notebooks/src
	$(BIN)/preflab sync

notebooks: env  ## Re-execute the committed notebooks from notebooks/src
	set -e; for name in $(NAMES) $(SOLUTIONS); do $(BIN)/preflab render $$name; done

figures: env  ## Publish the figures and numbers of PROFILE to figures/, and write CLAIMS.md
	$(BIN)/preflab publish --profile $(PROFILE)
	$(BIN)/preflab ledger

book: $(VENV)/.book  ## Build the site from what is committed: open book/html/index.html
	$(BIN)/python docs/making/stage.py
	$(BIN)/sphinx-build -q -W --keep-going -c docs book/source book/html
	$(BIN)/python docs/making/check.py book/html

slides: $(VENV)/.book  ## Make slides of one notebook (NAME=02_g_dynamics)
	$(BIN)/python docs/making/slides.py $(NAME)

$(VENV)/.book: requirements-book.lock $(STAMP)
	$(BIN)/pip install --no-deps -r requirements-book.lock
	@touch $@

cluster: .venv-cluster/.stamp  ## Build .venv-cluster: Snakemake, for many runs here or through Slurm (docs/many-runs.md)

.venv-cluster/.stamp: requirements-cluster.lock
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/pip install --no-deps -r requirements-cluster.lock
	@touch $@

clean-cache: env  ## Delete the cache of trained stages
	$(BIN)/preflab cache clear
