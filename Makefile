# make study   set up and run the default study        make test      set up and run the tests
# make help    every target
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= config/config.yaml

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

# The stamp is made again whenever the pins change.
$(VENV)/study.stamp: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test.stamp: requirements-dev.txt $(VENV)/study.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

setup: $(VENV)/study.stamp  ## create .venv with the pinned packages

study: $(VENV)/study.stamp  ## run the default study (STUDY=config/<study>.yaml for another) and render REPORT.md
	. $(BIN)/activate && snakemake --cores 1 --configfile $(STUDY)

study-full: $(VENV)/study.stamp  ## run everything that a CPU can: config/full.yaml
	. $(BIN)/activate && snakemake --cores 1 --configfile config/full.yaml

test: $(VENV)/test.stamp  ## run the tests; those that need a GPU, SLURM or a browser skip without one
	. $(BIN)/activate && pytest

test-gpu: $(VENV)/test.stamp  ## run the tests that need a CUDA device
	. $(BIN)/activate && pytest -m gpu

bench: $(VENV)/study.stamp  ## time the int8 kernels and the decode loop on this machine
	. $(BIN)/activate && python tools/bench_kernels.py

lint: $(VENV)/test.stamp  ## check style
	. $(BIN)/activate && ruff check . && ruff format --check . && snakefmt --check Snakefile workflow/rules && snakemake --lint

clean:  ## remove the environment and what was fetched; results stay
	rm -rf $(VENV) resources .snakemake

.PHONY: help setup study study-full test test-gpu bench lint clean
