# Uses the active environment (a virtual one, conda, or Colab); makes .venv where there is none.
PYTHON ?= python3
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(COLAB_RELEASE_TAG))
PY := $(if $(ACTIVE),python,.venv/bin/python)

.PHONY: help install quickstart smoke test lint
help:
	@echo "make quickstart   install, then distil a translator: about ten minutes on two cores"
	@echo "make smoke        install, then the same pipeline on a made-up language: about a minute"
	@echo "make test         install, then the tests"
	@echo "make install      only that, into .venv or the active environment; PYTHON=python3.13 chooses another Python"
	@echo "make lint         ruff"

ifdef ACTIVE
install:
	$(PY) -m pip install --quiet --requirement requirements.txt
else
install: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@
endif

quickstart: install
	$(PY) -m kd_jax run experiments/configs/quickstart.py --workdir runs/quickstart

smoke: install
	$(PY) -m kd_jax run experiments/configs/smoke.py --workdir runs/smoke

test: install
	$(PY) -m pytest -q

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
