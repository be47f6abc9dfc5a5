"""Strict settings for every test: no silent promotion, eight CPU devices, a compilation cache shared between runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
os.environ.setdefault("KD_JAX_CACHE", str(Path("~/.cache/kd_jax/xla-tests").expanduser()))
jax.config.update("jax_compilation_cache_dir", os.environ["KD_JAX_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache_small_programs():
    """Most of a test's time is compilation. A command caches programs that take 0.3 seconds; tests cache all."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="module")
def lax_promotion():
    """For modules that run optax's Adam, which raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> Path:
    """The workdir of a finished run of experiments/configs/smoke.py, made once for all test processes. Read only."""
    # Under pytest-xdist every process has a folder of its own below one that they share.
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = shared / "smoke_run"
    with filelock.FileLock(shared / "smoke_run.lock"):
        if not (path / "report/manifest.json").exists():
            command = [sys.executable, "-m", "kd_jax", "run", "experiments/configs/smoke.py", "--workdir", str(path)]
            finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert finished.returncode == 0, finished.stderr
    return path


@pytest.fixture
def smoke_copy(smoke_run, tmp_path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(smoke_run, tmp_path / "smoke_copy"))
