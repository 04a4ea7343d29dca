# `make demo` and `make test` do everything on a fresh machine with Python 3.11 and gcc, the installation included.
# Variables: PYTHON (the interpreter to start from), VENV (the environment to use, made if it is not there),
# PIP_FLAGS (e.g. --quiet), PYTEST_FLAGS.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
  if $$p -c '$(NEW_ENOUGH)' 2>/dev/null; then echo $$p; break; fi; done)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.vtskip-installed
STAGE := build/stage
DEMO := runs/demo
# Idle OpenMP threads must not spin: on two busy cores that costs more than the second thread brings.
DEMO_ENV := OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: help setup demo eval-small test test-slow test-oldest lint format clean
help:
	@echo "make demo       set up, make video clips, fine-tune a small model that skips, narrate a clip, evaluate"
	@echo "make eval-small the demo's model on every task but visual_qa, against all baselines: report.md and report.png (makes the demo first)"
	@echo "make test       set up, run the tests"
	@echo "make test-slow  the tests that 'make test' leaves out"
	@echo "make test-oldest the core tests on the oldest transformers that is supported"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make format     let ruff rewrite the files"
	@echo "make setup      only install, into $(VENV) (another one: make setup VENV=DIR)"
	@echo "make clean      remove builds, caches and runs, but not $(VENV)"

setup: $(STAMP)
$(STAMP): pyproject.toml .ci/constraints.txt
	@test -x $(BIN)/pip || { test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)'; } || \
	  { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing into $(VENV): about 2 GB and a few minutes, once"
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c .ci/constraints.txt torch==2.13.0 -e '.[dev]'
	@touch $@

demo: setup
	@mkdir -p $(DEMO) && find $(DEMO) -mindepth 1 -maxdepth 1 ! -name data -exec rm -rf {} +
	@echo "== 1 of 4: video clips with annotations ($(DEMO)/data)"
	@$(DEMO_ENV) $(BIN)/vtskip data make synthetic --tier small --out $(DEMO)/data
	@echo "== 2 of 4: fine-tune a small streaming model with mod routers ($(DEMO))"
	@$(DEMO_ENV) $(BIN)/vtskip train configs/train/demo_mod.yaml
	@echo "== 3 of 4: narrate a held-out clip as it plays ($(DEMO)/narration.vtt)"
	@clip=$$($(BIN)/python -c 'import json; print(json.load(open("$(DEMO)/data/splits.json"))["test"][0])'); \
	  $(DEMO_ENV) $(BIN)/vtskip stream $(DEMO)/data/videos/$$clip.mp4 --model $(DEMO) \
	  --vtt $(DEMO)/narration.vtt --out $(DEMO)/narration.json
	@echo "== 4 of 4: evaluate on all held-out clips, against blind ($(DEMO)/record.json)"
	@$(DEMO_ENV) $(BIN)/vtskip eval configs/eval/demo.yaml
	@for file in config.json vtskip_config.json narration.vtt narration.json record.json; do \
	  test -s $(DEMO)/$$file || { echo "$(DEMO)/$$file is missing" >&2; exit 1; }; done
	@echo "== done: $(DEMO) holds the checkpoint, narration.vtt, narration.json and record.json"

# Started again after an interruption, it goes on where it was.
eval-small: setup
	@test -s $(DEMO)/record.json || $(MAKE) --no-print-directory demo
	@$(DEMO_ENV) $(BIN)/vtskip eval configs/eval/small.yaml
	@$(DEMO_ENV) $(BIN)/vtskip report $(DEMO)/small --against dense --picture $(DEMO)/small/report.png > $(DEMO)/small/report.md
	@echo "== done: $(DEMO)/small holds record.json, report.md and report.png"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_FLAGS)

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow $(PYTEST_FLAGS)

# The oldest transformers that is supported, in an environment of its own on top of the first: only what differs is installed.
OLDEST := $(VENV)-oldest/bin/python
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
OLDEST_TESTS := tests/runtime tests/methods tests/golden tests/contracts tests/models tests/streaming tests/test_plan.py \
  tests/test_saving.py tests/test_model_card.py
test-oldest: setup
	test -x $(OLDEST) || $(BIN)/python -m venv $(VENV)-oldest
	$(BIN)/python $(SITE) > "$$($(OLDEST) $(SITE))/first.pth"
	$(OLDEST) -m pip install --disable-pip-version-check $(PIP_FLAGS) 'transformers==5.17.*'
	OMP_NUM_THREADS=1 $(OLDEST) -m pytest -n 2 $(OLDEST_TESTS) $(PYTEST_FLAGS)

# mypy and import-linter judge the package as it is installed: the four folders inside vtskip.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(STAGE) && mkdir -p $(STAGE) && cp -r vtskip $(STAGE)/ && cp -r data train eval configs $(STAGE)/vtskip/
	MYPYPATH=$(STAGE) $(BIN)/mypy --config-file pyproject.toml -p vtskip
	cd $(STAGE) && PYTHONPATH=. $(BIN)/lint-imports --no-logo --config $(CURDIR)/pyproject.toml

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
