"""Strict ground for every test: no silent promotion, eight CPU devices, compiled programs shared between runs."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
os.environ.setdefault("KD_JAX_CACHE", str(Path("~/.cache/kd_jax/xla-tests").expanduser()))
jax.config.update("jax_compilation_cache_dir", os.environ["KD_JAX_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def small_programs_are_kept_too():
    """Most of a test's time is compilation; a command, which keeps those of 0.3 seconds alone, may have come before."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lax_promotion():
    """For modules that run optax's Adam, which raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield
