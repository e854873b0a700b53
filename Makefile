# Everything runs in .venv, which the targets make themselves. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
BIN := .venv/bin
# Where `make stack` keeps its databases, buckets, keys and logs.
FOLDER ?= stack
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_OFFLINE := 1

.PHONY: help demo test test-stack stack stack-packages check bench bench-embedded bench-metrics bench-pipeline pretrain clean

help:  ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/installed: pyproject.toml constraints.txt models/attention_avx512.c
	@echo "Installing into .venv: torch, Prefect, MLflow and the rest, some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## Set everything up and inspect generated objects and real solar cells
	$(BIN)/anomalyclip demo

test: .venv/installed  ## Set everything up and run the tests
	$(BIN)/pytest

test-stack: .venv/installed stack-packages  ## Run the tests on real servers and in a real browser; SCREENSHOTS=folder keeps pictures
	$(BIN)/pytest -m stack

stack: .venv/installed stack-packages  ## Run the whole system here: PostgreSQL, Prefect, MLflow, S3, a worker; Ctrl-C stops it
	@$(BIN)/python -m infra.stack --folder $(FOLDER)

stack-packages:  ## Install the Debian packages that the stack needs, as root
	@infra/install-packages

check: .venv/installed  ## Lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed  ## Measure the detector against the machine's limit, and training against the vision tower
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.detector --json bench-detector.json
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.training --json bench-training.json

bench-embedded: .venv/installed  ## Measure the embedded backbone on families and images that no training saw
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.embedded --json bench-embedded.json

bench-metrics: .venv/installed  ## Measure the pixel metrics beside the published way
	$(BIN)/python -m benchmarks.metrics --json bench-metrics.json

bench-pipeline: .venv/installed  ## Measure ingest, storage, Prefect and Ray beside a bare loop, on a real S3 server
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.pipeline --json bench-pipeline.json

pretrain: .venv/installed  ## Pre-train the embedded backbone again, from nothing (two and a quarter hours)
	OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 $(BIN)/python -m models.embedded.pretrain

clean:  ## Remove the environment, the local store and the local stack
	rm -rf .venv store stack
