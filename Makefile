# Installs into the active environment (a virtual one, conda, or Colab); makes .venv where there is none.
PYTHON ?= python3
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(and $(COLAB_RELEASE_TAG),Colab))
PY := $(if $(ACTIVE),python,.venv/bin/python)
# Colab brings a JAX of its own, made for its accelerator: nothing that is there is replaced.
PINS := $(if $(COLAB_RELEASE_TAG),,--constraint requirements.txt)
VERSIONS := $(if $(PINS),in the versions of requirements.txt,where they are missing)
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
PYTEST := $(PY) -m pytest -q --numprocesses 2 --dist loadfile

define install
	@echo "install: kd_jax, its dependencies and those of its tests, $(VERSIONS), into $(or $(ACTIVE),.venv)"
	@$(PIP) --editable '.[test]' $(PINS)
	@$(PY) -c "import sys, jax; print('install: done, Python', sys.version.split()[0] + ', JAX', jax.__version__ + ',', sys.prefix)"
endef

.PHONY: help install quickstart smoke test test-all test-libraries test-beam lint docs
help:
	@echo "make quickstart   install, then distil a translator: ten minutes on two idle cores"
	@echo "make smoke        install, then run three tasks on made-up text: 3 to 18 minutes"
	@echo "make test         install, then the tests"
	@echo "make test-all     the tests, then the extended ones, Apache Beam's among them"
	@echo "make lint         ruff, pyright, import-linter"
	@echo "make docs         the pages, into docs/_build/html; a warning is an error"
	@echo "make install      only install, into .venv or the active environment; PYTHON=python3.13 chooses another Python"

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

test-libraries: install
	@echo "test: PyTorch and transformers for comparison, and the clients of buckets"
	@$(PIP) --editable '.[test,parity,gcs,s3]' 'moto[server]' $(PINS)

test: test-libraries
	$(PYTEST) -m "not extended"

test-all: test
	$(PYTEST) -m extended
	$(MAKE) test-beam

# Apache Beam wants an older protobuf than the rest is tested with.
test-beam:
	@echo "test-beam: Apache Beam, in an environment of its own, .beam"
	@$(PY) -m venv .beam
	@grep -vE '^(protobuf|pyarrow|sentencepiece)=' requirements.txt > .beam/constraints.txt
	@.beam/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,beam]' --constraint .beam/constraints.txt
	.beam/bin/python -m pytest -q tests/batches/test_beam_runner.py tests/phases/test_prepare.py -k beam

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(shell command -v $(PY))
	$(dir $(shell $(PY) -c "import sys; print(sys.executable)"))lint-imports

docs: install
	@$(PIP) --editable '.[docs]' $(PINS)
	$(PY) -m sphinx --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"
