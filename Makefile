# Installs into the active environment (a virtual one, conda, or Colab); makes .venv where there is none.
PYTHON ?= python3
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(and $(COLAB_RELEASE_TAG),Colab))
PY := $(if $(ACTIVE),python,.venv/bin/python)
# Colab brings a JAX of its own, made for its accelerator: nothing that is there is replaced.
PINS := $(if $(COLAB_RELEASE_TAG),,--constraint requirements.txt)
VERSIONS := $(if $(PINS),in the versions of requirements.txt,where they are lacking)

define install
	@echo "install: kd_jax and what it and its tests need, $(VERSIONS), into $(or $(ACTIVE),.venv)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]' $(PINS)
	@$(PY) -c "import sys, jax; print('install: done, Python', sys.version.split()[0] + ', JAX', jax.__version__ + ',', sys.prefix)"
endef

.PHONY: help install quickstart smoke test test-beam lint
help:
	@echo "make quickstart   install, then distil a translator: about ten minutes on two cores"
	@echo "make smoke        install, then the pipelines of three tasks on made-up text: about two minutes"
	@echo "make test         install, then the tests"
	@echo "make install      only that, into .venv or the active environment; PYTHON=python3.13 chooses another Python"
	@echo "make lint         ruff"

ifdef ACTIVE
install:
	$(install)
else
install: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(install)
	@touch $@
endif

quickstart: install
	$(PY) -m kd_jax run experiments/configs/quickstart.py --workdir runs/quickstart

smoke: install
	$(PY) -m kd_jax run experiments/configs/smoke.py --workdir runs/smoke
	$(PY) -m kd_jax run experiments/configs/smoke_summaries.py --workdir runs/smoke_summaries
	$(PY) -m kd_jax run experiments/configs/smoke_lm.py --workdir runs/smoke_lm

test: install
	@echo "test: PyTorch and transformers too, which the tests compare with, and what reads buckets"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test,parity,gcs,s3]' 'moto[server]' $(PINS)
	$(PY) -m pytest -q --numprocesses 2 --dist loadfile
	$(MAKE) test-beam

# Apache Beam wants an older protobuf than the rest is tested with.
test-beam:
	@echo "test-beam: Apache Beam, in an environment of its own, .beam"
	@$(PY) -m venv .beam
	@grep -vE '^(protobuf|pyarrow|sentencepiece)=' requirements.txt > .beam/constraints.txt
	@.beam/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,beam]' --constraint .beam/constraints.txt
	.beam/bin/python -m pytest -q tests/phases/test_prepare.py -k "beam or one_line"

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
