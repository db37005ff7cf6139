# Every target sets up what it needs first; a second call starts at once. `make help` lists them.
#
#   PYTHON=python3.10      interpreter for a new environment     VENV=.venv   where it lies
#   TORCH_INDEX=URL        index for torch alone, e.g. one with CPU builds
#   K="accuracy and batch-32"  ARGS="--batch_size 16"            for make demo, make serve

.DEFAULT_GOAL := help
VENV ?= .venv
K ?= performance and batch-1
export VENV
RUN := $(VENV)/bin/python -m

.PHONY: help setup setup-vllm demo serve test test-full lint format clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## environment, packages and default model
	@scripts/setup.sh --model

demo: ## the main job on the emulator: K= selects, ARGS= overrides
	@scripts/setup.sh $(if $(HF_MODEL)$(LLAMA_DIR),,--model)
	TT_BACKEND=$${TT_BACKEND:-emulator} $(RUN) pytest demo/simple_text_demo.py -k "$(K)" $(ARGS)

setup-vllm: ## the environment with vLLM in it, for serving (Python 3.11 to 3.13)
	@scripts/setup_vllm.sh --model

serve: ## an OpenAI server of the model on 127.0.0.1:8000
	@scripts/setup_vllm.sh $(if $(HF_MODEL)$(LLAMA_DIR),,--model)
	$(VENV)/bin/python demo/server_example_tt.py $(ARGS)

test: ## the fast tests, as CI runs them
	@scripts/setup.sh --dev --model
	$(RUN) pytest $(ARGS)

test-full: ## every test, the long matrices too
	@scripts/setup.sh --dev --model
	$(RUN) pytest -m "full or not full" $(ARGS)

lint: ## ruff and mypy
	@scripts/setup.sh --dev
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

format: ## rewrite the code in the house style
	@scripts/setup.sh --dev
	$(RUN) ruff check --fix-only
	$(RUN) ruff format

clean: ## remove caches and generated files; keeps the environment and models
	rm -rf generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also remove the environment, the default model and cached weights
	rm -rf $(VENV) $(VENV).lock model_cache
