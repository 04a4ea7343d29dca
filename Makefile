# Two commands do everything on a fresh machine: `make demo` and `make test`. VENV=... uses an environment of your own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.vtskip-installed
DEMO := runs/demo
# Idle OpenMP threads must not spin: on two busy cores that costs more than the second thread brings.
DEMO_ENV := OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo test test-slow lint clean
help:
	@echo "make demo   set up, fine-tune a tiny streaming model with routers on generated video, narrate, evaluate"
	@echo "make test   set up, run the tests (under 10 minutes on 2 cores)"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make setup  only install into $(VENV)"

setup: $(STAMP)
$(STAMP): pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 2 GB)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt torch==2.13.0 -e '.[dev]'
	touch $@

demo: setup
	mkdir -p $(DEMO) && find $(DEMO) -mindepth 1 -maxdepth 1 ! -name data -exec rm -rf {} +
	$(DEMO_ENV) $(BIN)/vtskip data make synthetic --tier small --out $(DEMO)/data
	$(DEMO_ENV) $(BIN)/vtskip train configs/train/demo_mod.yaml
	$(DEMO_ENV) $(BIN)/vtskip stream $$($(BIN)/python -c "import json; \
	  print('$(DEMO)/data/videos/' + json.load(open('$(DEMO)/data/splits.json'))['test'][0] + '.mp4')") \
	  --model $(DEMO) --vtt $(DEMO)/narration.vtt --out $(DEMO)/narration.json
	$(DEMO_ENV) $(BIN)/vtskip eval configs/eval/demo.yaml
	@echo "checkpoint, narration.vtt, narration.json and record.json are in $(DEMO)/"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/stage && mkdir -p build/stage && cp -r vtskip build/stage/ && cp -r data train eval configs build/stage/vtskip/
	MYPYPATH=build/stage $(BIN)/mypy --config-file pyproject.toml -p vtskip
	cd build/stage && PYTHONPATH=. $(abspath $(BIN))/lint-imports --config ../../pyproject.toml

clean:
	rm -rf build runs .pytest_cache .mypy_cache .ruff_cache
