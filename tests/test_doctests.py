"""The examples in docstrings, of every module; losses and signals have some."""

import doctest
import importlib
import pkgutil

import pytest

import kd_jax

MODULES = [
    module.name for module in pkgutil.walk_packages(kd_jax.__path__, "kd_jax.") if not module.name.endswith("__main__")
]
SHOWN = {name for name in MODULES if name.startswith(("kd_jax.losses.", "kd_jax.signals."))}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert not failed
    assert attempted or name not in SHOWN
