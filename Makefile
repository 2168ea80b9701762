# For a newcomer: `make demo` (the whole life cycle, no AWS account) and `make test`. All targets: `make help`.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION := 20
export PATH := $(CURDIR)/$(BIN):$(CURDIR)/node_modules/.bin:$(PATH)

.PHONY: help setup demo smoke-aws test test-quick lint fmt clean test-docker sbom checkov bench-synth bench-image bench-transfer bench-first-step bench-checkpoint

help: ## This list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
	  printf '  %-17s %s\n' "$$target" "$$text"; done

setup: .venv/.ready ## Virtual environment, `lab` command, pinned CDK CLI; nothing when nothing changed

.venv/.ready: requirements.txt requirements-dev.txt training_image/requirements.txt pyproject.toml package.json scripts/setup.sh
	@PYTHON="$(PYTHON)" scripts/setup.sh

demo: setup ## The whole life cycle on this machine, no AWS account. ENGINE=docker DATA=<folder or file> MODEL=<folder> DEMO_STEPS=<n>
	@$(BIN)/lab local demo $(if $(DATA),--data "$(DATA)") $(if $(MODEL),--model "$(MODEL)")

smoke-aws: setup ## The acceptance run in your AWS account, under a dollar; asks first. MODEL=<Hub id or folder> DATA=<folder or file>
	@$(BIN)/lab smoke-aws $(if $(DATA),--data "$(DATA)") $(if $(MODEL),--model "$(MODEL)")

PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20 # the order is tests/conftest.py's

test: setup lint ## Everything: linters, unit tests, life-cycle tests
	$(PYTEST) -m "not docker and not gpu"

test-quick: setup lint ## What takes less than five minutes: linters, types, unit tests
	$(PYTEST) tests/unit

test-docker: setup ## The image really built, pushed, pulled and run; needs a Docker engine, see scripts/private_docker.sh
	$(BIN)/pytest -m docker tests/docker

sbom: ## SBOM (CycloneDX) of both image variants from their lock files, into .lab/
	@scripts/sbom.sh

lint: setup ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=lambda/auto_terminator $(BIN)/mypy lambda/auto_terminator/*.py # apart: its files are named like the other's

checkov: setup ## checkov over every variant's templates, in a virtual environment of its own (a minute the first time)
	scripts/checkov.sh

bench-image: setup ## How large the image is; IMAGE=<name> VARIANT=cpu|gpu: one that Docker has, measured layer by layer
	$(BIN)/python benchmarks/bench_image.py $(if $(IMAGE),--image "$(IMAGE)") $(if $(VARIANT),--variant $(VARIANT))

bench-checkpoint: setup ## What checkpoints cost, and how soon one is safe; five minutes, best on a quiet machine
	$(BIN)/python benchmarks/bench_checkpoint.py
	$(BIN)/python benchmarks/bench_stall.py

bench-synth: setup ## How long `cdk synth` takes, beside an app of two resources; best on a quiet machine
	$(BIN)/python benchmarks/bench_synth.py

bench-transfer: setup ## How long an instance's downloads take, beside `aws s3 sync`; SMALL=<files> LARGE=<MB>: less than 10000 and 2000
	$(BIN)/python benchmarks/bench_transfer.py $(if $(SMALL),--small-files $(SMALL)) $(if $(LARGE),--large-mb $(LARGE))

bench-first-step: setup ## How long an attempt takes from its container's start to its first step, by phase
	$(BIN)/python benchmarks/bench_first_step.py

fmt: setup ## Formats the code, and fixes what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Removes what setup and the local cloud made; never touches AWS
	-@test -x $(BIN)/lab && $(BIN)/lab local down
	rm -rf .venv node_modules .lab cdk.out
